#!/bin/bash
# A part of the quickstart, process by process: control plane, two services with their sidecars, an edge.
# From the root of the repository, after make build. The catalog's other instances are missing; the edge finds that out.
set -e -o pipefail
cd "$(dirname "$0")/../.."
STATE=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$STATE"' EXIT
CONTROL=127.0.0.1:15010
EXAMPLE=examples/quickstart

bin/sallyport validate --catalog $EXAMPLE/catalog.yaml --policies $EXAMPLE/policies
bin/sallyport control-plane --listen $CONTROL --status-listen 127.0.0.1:15011 --catalog $EXAMPLE/catalog.yaml --policies $EXAMPLE/policies --state $STATE &
until (exec 3<>/dev/tcp/${CONTROL/:/\/}) 2>/dev/null; do sleep 0.1; done
token() { bin/sallyport token create --$1 $2 --state $STATE; } # service or gateway, its name

bin/sallyport demo app --service storefront --instance storefront-1 --listen 127.0.0.1:8101 &
bin/sallyport sidecar --service storefront --port 8101 --listen 127.0.0.1:8201 --control-plane $CONTROL --token $(token service storefront) &
bin/sallyport demo app --service orders --version v1 --instance orders-v1-1 --listen 127.0.0.1:8111 &
bin/sallyport sidecar --service orders --port 8111 --listen 127.0.0.1:8211 --control-plane $CONTROL --token $(token service orders) &
bin/sallyport edge --gateway public --listen 127.0.0.1:8444 --control-plane $CONTROL --token $(token gateway public) &

shop() { curl -sS --cacert $EXAMPLE/keys/shop.crt --resolve shop.example.com:8444:127.0.0.1 "$@"; }
AUTH="Authorization: Bearer $(cat $EXAMPLE/keys/token)"
shop --retry 60 --retry-delay 1 --retry-all-errors -f https://shop.example.com:8444/
shop --retry 60 --retry-delay 1 --retry-all-errors -f -H "$AUTH" https://shop.example.com:8444/api/orders/stable
shop -o /dev/null -w '%{http_code} without a token\n' https://shop.example.com:8444/api/orders/stable
