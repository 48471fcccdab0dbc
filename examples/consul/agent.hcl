# A Consul agent for one machine; with `consul agent -dev`, which keeps everything in memory.
node_name            = "example"
bind_addr            = "127.0.0.1"
client_addr          = "127.0.0.1"
disable_update_check = true
log_level            = "warn"

ports {
  http     = 8500
  server   = 8300
  serf_lan = 8301
  serf_wan = 8302
  dns      = -1
  grpc     = -1
  grpc_tls = -1
}
