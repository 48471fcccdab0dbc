#!/bin/bash
# Consul, two services registered in plain HCL, their sidecars and an edge, process by process.
# From the root of the repository, after make build; consul is on the PATH, or CONSUL says where it is.
set -e -o pipefail
cd "$(dirname "$0")/../.."
STATE=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$STATE"' EXIT
CONTROL=127.0.0.1:15010
EXAMPLE=examples/consul
CONSUL=${CONSUL:-consul}
export CONSUL_HTTP_ADDR=127.0.0.1:8500

"$CONSUL" agent -dev -config-file $EXAMPLE/agent.hcl &
until "$CONSUL" config list -kind service-intentions >/dev/null 2>&1; do sleep 0.2; done
"$CONSUL" services register $EXAMPLE/services.hcl
"$CONSUL" config write $EXAMPLE/intentions-storefront.hcl
"$CONSUL" config write $EXAMPLE/intentions-orders.hcl

bin/sallyport control-plane --listen $CONTROL --status-listen 127.0.0.1:15011 --consul http://$CONSUL_HTTP_ADDR --policies $EXAMPLE/policies --state $STATE &
until (exec 3<>/dev/tcp/${CONTROL/:/\/}) 2>/dev/null; do sleep 0.1; done
token() { bin/sallyport token create --$1 $2 --state $STATE; } # service or gateway, its name

bin/sallyport demo app --service orders --listen 127.0.0.1:8111 &
bin/sallyport sidecar --service orders --port 8111 --listen 127.0.0.1:8211 --control-plane $CONTROL --token $(token service orders) &
bin/sallyport demo app --service storefront --listen 127.0.0.1:8101 --call /checkout=http://127.0.0.1:8901 &
bin/sallyport sidecar --service storefront --port 8101 --listen 127.0.0.1:8201 --upstream orders:8901 --control-plane $CONTROL --token $(token service storefront) &
bin/sallyport edge --gateway public --listen 127.0.0.1:8080 --control-plane $CONTROL --token $(token gateway public) &

curl --retry 60 --retry-delay 1 --retry-all-errors -fsS http://127.0.0.1:8080/checkout
# An intention less, and the sidecar of orders refuses the storefront; the checks of Consul decide who gets requests.
"$CONSUL" config delete -kind service-intentions -name orders
until curl -sS http://127.0.0.1:8080/checkout | grep '"status":403'; do sleep 0.1; done
