# Who may call orders: the storefront.
Kind = "service-intentions"
Name = "orders"
Sources = [
  { Name = "storefront", Action = "allow" }
]
