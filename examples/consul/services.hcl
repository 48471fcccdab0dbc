# Two services, as Consul knows them: each with a check on the application and a sidecar, which is registered as a
# connect-proxy. `consul services register` takes this file; nothing in it is sallyport's own.
services {
  id      = "storefront-1"
  name    = "storefront"
  address = "127.0.0.1"
  port    = 8101
  check {
    http     = "http://127.0.0.1:8101/healthz"
    interval = "1s"
  }
  connect {
    sidecar_service {
      address = "127.0.0.1"
      port    = 8201
      check {
        tcp      = "127.0.0.1:8201"
        interval = "1s"
      }
    }
  }
}

services {
  id      = "orders-1"
  name    = "orders"
  address = "127.0.0.1"
  port    = 8111
  check {
    http     = "http://127.0.0.1:8111/healthz"
    interval = "1s"
  }
  connect {
    sidecar_service {
      address = "127.0.0.1"
      port    = 8211
      check {
        tcp      = "127.0.0.1:8211"
        interval = "1s"
      }
    }
  }
}
