# Who may call the storefront: the gateway named public.
Kind = "service-intentions"
Name = "storefront"
Sources = [
  { Name = "public", Action = "allow" }
]
