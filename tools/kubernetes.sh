#!/usr/bin/env bash
# A Kubernetes on this machine, to install Dhow on and to compare it with: built from its sources at the version that Dhow follows, since its images may be out of reach.
# The control plane runs on this machine, at the bridge kbr0; each of two nodes, kubelet, containerd and kube-proxy, in namespaces of its own. As root; cgroup v1 or v2.
#
#   tools/kubernetes.sh up [DIR]     build what is missing into DIR/bin, and start it (default: /var/lib/dhow-kubernetes)
#   tools/kubernetes.sh down [DIR]   stop it and remove all but DIR/bin
#   tools/kubernetes.sh run [DIR]    up; the scenarios on a Dhow that is installed there; what the tests of kubectl expect of Dhow, held against Kubernetes; down
#
# DIR/kubeconfig is the administrator's. Nodes pull from the registry 10.77.0.1:5001, and registry.dhow:5000 is 10.77.0.1:5000 for them. Each node has two volumes of the
# default storage class. There is no metrics server.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
runtime=$repo/bin/runtime
dir=${2:-/var/lib/dhow-kubernetes}
bin=$dir/bin state=$dir/state
version=1.36.3 coredns=v1.12.4 crane=v0.22.1
gateway=10.77.0.1
nodes="1 2" # node N is nN, has the address 10.77.0.(N+1) and the pods 10.244.N.0/24

fail() { printf 'kubernetes: %s\n' "$*" >&2; exit 1; }
say() { printf 'kubernetes: %s\n' "$*"; }

# build makes a module that requires Kubernetes: its own go.mod points to folders that the module proxy does not have.
build() {
  local stamp="$version $coredns $crane $(go env GOVERSION)"
  [ "$(cat "$bin/.built" 2>/dev/null)" = "$stamp" ] && return
  say "building Kubernetes $version, CoreDNS $coredns and crane $crane"
  mkdir -p "$bin" "$dir/module"
  local source
  cd "$dir/module"
  printf 'module kubernetes.build\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v%s\n' "$version" >go.mod
  source=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  cp "$source/go.sum" .
  sed -n "s|^\t\(k8s.io/[a-z0-9-]*\) => ./staging.*|replace \1 => \1 v0.${version#1.}|p" "$source/go.mod" >>go.mod
  { printf '//go:build tools\n\npackage tools\n\nimport (\n'; printf '\t_ "k8s.io/kubernetes/cmd/%s"\n' $programs; printf ')\n'; } >tools.go
  go mod tidy 2>/dev/null
  CGO_ENABLED=0 go build -trimpath -o "$bin/" -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36" \
    $(printf 'k8s.io/kubernetes/cmd/%s ' $programs)
  CGO_ENABLED=0 GOBIN=$bin go install "github.com/coredns/coredns@$coredns"
  CGO_ENABLED=0 GOBIN=$bin go install "github.com/google/go-containerregistry/cmd/crane@$crane"
  cd "$repo/services"
  CGO_ENABLED=0 go build -trimpath -o "$bin/etcd" go.etcd.io/etcd/server/v3
  echo "$stamp" >"$bin/.built"
}
programs="kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet"

# certificate NAME SUBJECT [NAMES]
certificate() {
  openssl req -new -newkey rsa:2048 -nodes -keyout "$state/pki/$1.key" -subj "$2" -out "$state/pki/$1.csr" 2>/dev/null
  printf '%s' "${3:+subjectAltName=$3}" >"$state/pki/$1.names"
  openssl x509 -req -in "$state/pki/$1.csr" -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" -CAcreateserial -days 30 -out "$state/pki/$1.crt" -extfile "$state/pki/$1.names" 2>/dev/null
}

# kubeconfig NAME FILE
kubeconfig() {
  cat >"$2" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: kubernetes, cluster: {server: "https://$gateway:6443", certificate-authority: $state/pki/ca.crt}}]
users: [{name: $1, user: {client-certificate: $state/pki/$1.crt, client-key: $state/pki/$1.key}}]
contexts: [{name: kubernetes, context: {cluster: kubernetes, user: $1}}]
current-context: kubernetes
YAML
}

# start NAME PROGRAM ARGUMENTS
start() {
  local name=$1
  shift
  setsid nohup "$@" >"$state/log/$name.log" 2>&1 </dev/null &
  echo $! >"$state/pids/$name"
}

kubectl() { "$repo/bin/dhow-kubectl" --kubeconfig "$dir/kubeconfig" --cache-dir "$state/cache" "$@"; }

# soon COMMAND: until it succeeds, for two minutes.
soon() {
  local end=$((SECONDS + 120))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "not after two minutes: $*; logs are in $state/log"
    sleep 0.5
  done
}

network() {
  ip link add kbr0 type bridge
  ip addr add $gateway/24 dev kbr0
  ip link set kbr0 up
  sysctl -qw net.ipv4.ip_forward=1
  local i j
  for i in $nodes; do
    ip netns add kube-n$i
    ip link add kube-n$i type veth peer name eth0 netns kube-n$i
    ip link set kube-n$i master kbr0 up
    ip -n kube-n$i addr add 10.77.0.$((i + 1))/24 dev eth0
    ip -n kube-n$i link set eth0 up
    ip -n kube-n$i link set lo up
    ip -n kube-n$i route add default via $gateway
    ip netns exec kube-n$i sysctl -qw net.ipv4.ip_forward=1
    ip route add 10.244.$i.0/24 via 10.77.0.$((i + 1))
    for j in $nodes; do [ $i = $j ] || ip -n kube-n$i route add 10.244.$j.0/24 via 10.77.0.$((j + 1)); done
  done
}

# node N writes the files of a node and starts it.
node() {
  local n=n$1 at=$state/n$1 address=10.77.0.$(($1 + 1)) cgroup
  mkdir -p "$at"/{kubelet,containerd,volumes/1,volumes/2,dhow-e2e,logs/pods,logs/containers,cni,plugins,registries}
  chmod 0777 "$at"/volumes/*
  for cgroup in /sys/fs/cgroup $(find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d ! -type l); do
    [ -e "$cgroup/cgroup.procs" ] && mkdir -p "$cgroup/kube-$n"
  done
  cp "$runtime"/{bridge,host-local,loopback,portmap} "$at/plugins/"
  registry "$at" $gateway:5001 $gateway:5001
  registry "$at" registry.dhow:5000 $gateway:5000
  cat >"$at/cni/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "kubernetes", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "10.244.$1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  cat >"$at/containerd.toml" <<TOML
version = 3
root = "$at/containerd"
state = "/run/containerd"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  cni = { bin_dirs = ["$at/plugins"], conf_dir = "$at/cni" }
  containerd.runtimes.runc = { runtime_type = "io.containerd.runc.v2", options = { BinaryName = "$runtime/runc" } }
[plugins."io.containerd.cri.v1.images"]
  pinned_images = { sandbox = "dhow.dev/pause:1" }
  registry = { config_path = "$at/registries" }
TOML
  cat >"$at/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
cgroupRoot: /kube-$n
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failCgroupV1: false
failSwapOn: false
evictionHard: {memory.available: 100Mi, nodefs.available: 5%, imagefs.available: 5%}
YAML
  # Its own processes, mounts and /run: it sees nothing of other nodes, and goes with its first process.
  cat >"$at/node" <<BASH
set -eu
mount --make-rshared /
mount -t tmpfs -o mode=0755 tmpfs /run
mount --make-shared /run
mkdir -p /run/containerd /run/netns /run/dhow-e2e /var/lib/kubelet /var/lib/dhow-e2e /var/log/pods /var/log/containers /mnt
mount --bind $at/kubelet /var/lib/kubelet
mount --bind $at/dhow-e2e /var/lib/dhow-e2e
mount --bind $at/logs/pods /var/log/pods
mount --bind $at/logs/containers /var/log/containers
export PATH=$runtime:\$PATH
$runtime/containerd --config $at/containerd.toml >$state/log/containerd-$n.log 2>&1 &
until $runtime/ctr version >/dev/null 2>&1; do sleep 0.1; done
$runtime/ctr -n k8s.io images import $runtime/pause.tar
$bin/kube-proxy --kubeconfig $state/proxy.kubeconfig --hostname-override $n --proxy-mode nftables --cluster-cidr 10.244.0.0/16 --conntrack-max-per-core 0 >$state/log/proxy-$n.log 2>&1 &
$bin/kubelet --config $at/kubelet.yaml --kubeconfig $state/$n.kubeconfig --hostname-override $n --node-ip $address --cert-dir /var/lib/kubelet/pki >$state/log/kubelet-$n.log 2>&1 &
wait
BASH
  start $n nsenter --net=/run/netns/kube-$n unshare --mount --pid --fork --kill-child --mount-proc --propagation slave bash "$at/node"
}

# registry NODE NAME ADDRESS
registry() {
  mkdir -p "$1/registries/$2"
  printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$3" "$3" >"$1/registries/$2/hosts.toml"
}

base() {
  cat <<'YAML'
{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [10.77.0.1]}]
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
YAML
  local i volume
  for i in $nodes; do
    for volume in 1 2; do
      cat <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: n$i-$volume}
spec:
  capacity: {storage: 2Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: standard
  local: {path: $state/n$i/volumes/$volume}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n$i]}]}]}}
YAML
    done
  done
}

up() {
  [ "$(id -u)" = 0 ] || fail "nodes are network namespaces with containers: run this as root"
  [ ! -e "$state" ] || fail "$state is there already: tools/kubernetes.sh down $dir removes it"
  [ -x "$runtime/containerd" ] && [ -x "$repo/bin/dhow-kubectl" ] || fail "bin/ has no container runtime and no kubectl: make setup build"
  build
  local i name
  mkdir -p "$state"/{pki,log,pids,registry}
  network
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$state/pki/ca.key" -out "$state/pki/ca.crt" -subj /CN=kubernetes -days 30 2>/dev/null
  openssl genrsa -out "$state/pki/accounts.key" 2048 2>/dev/null
  certificate apiserver /CN=kube-apiserver "IP:$gateway,IP:10.96.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  certificate admin /O=system:masters/CN=admin
  certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  for i in $nodes; do certificate n$i /O=system:nodes/CN=system:node:n$i; done
  kubeconfig admin "$dir/kubeconfig"
  for name in controller-manager scheduler proxy $(printf 'n%s ' $nodes); do kubeconfig "$name" "$state/$name.kubeconfig"; done

  say "starting Kubernetes $version"
  start registry "$bin/crane" registry serve --address $gateway:5001 --disk "$state/registry"
  start etcd "$bin/etcd" --data-dir "$state/etcd" --listen-client-urls http://$gateway:2379 --advertise-client-urls http://$gateway:2379 \
    --listen-peer-urls http://$gateway:2380 --initial-advertise-peer-urls http://$gateway:2380 --initial-cluster default=http://$gateway:2380
  start apiserver "$bin/kube-apiserver" --etcd-servers=http://$gateway:2379 --advertise-address=$gateway --bind-address=$gateway --secure-port=6443 --cert-dir="$state/pki" \
    --tls-cert-file="$state/pki/apiserver.crt" --tls-private-key-file="$state/pki/apiserver.key" --client-ca-file="$state/pki/ca.crt" \
    --kubelet-client-certificate="$state/pki/kubelet-client.crt" --kubelet-client-key="$state/pki/kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$state/pki/accounts.key" --service-account-signing-key-file="$state/pki/accounts.key" \
    --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true
  soon kubectl get --raw /readyz
  start controller-manager "$bin/kube-controller-manager" --kubeconfig="$state/controller-manager.kubeconfig" --authentication-kubeconfig="$state/controller-manager.kubeconfig" \
    --authorization-kubeconfig="$state/controller-manager.kubeconfig" --bind-address=$gateway --cert-dir="$state/pki" --use-service-account-credentials \
    --root-ca-file="$state/pki/ca.crt" --service-account-private-key-file="$state/pki/accounts.key" --leader-elect=false
  start scheduler "$bin/kube-scheduler" --kubeconfig="$state/scheduler.kubeconfig" --authentication-kubeconfig="$state/scheduler.kubeconfig" \
    --authorization-kubeconfig="$state/scheduler.kubeconfig" --bind-address=$gateway --cert-dir="$state/pki" --leader-elect=false
  printf '.:53 {\n  bind %s\n  errors\n  kubernetes cluster.local {\n    kubeconfig %s kubernetes\n    ttl 5\n  }\n}\n' $gateway "$dir/kubeconfig" >"$state/Corefile"
  start coredns "$bin/coredns" -conf "$state/Corefile"
  for i in $nodes; do node $i; done
  base | kubectl apply -f - >/dev/null
  for i in $nodes; do soon kubectl wait --for=condition=Ready node/n$i --timeout=1s; done
  soon kubectl get serviceaccount default
  kubectl get nodes -o wide
  say "use it: export KUBECONFIG=$dir/kubeconfig"
}

down() {
  local file pid i cgroup
  # A node's first process takes along what runs on it.
  for file in $(ls -r "$state"/pids/* 2>/dev/null); do
    pid=$(cat "$file")
    # A number that belongs to another program by now is left alone.
    grep -qsF "$dir" "/proc/$pid/cmdline" || grep -qsF "$gateway" "/proc/$pid/cmdline" || continue
    kill -KILL "$pid"
    while [ -e "/proc/$pid" ] && ! grep -q '^State:.*Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.1; done
  done
  for i in $nodes; do
    for cgroup in $(find /sys/fs/cgroup -maxdepth 2 -type d -name kube-n$i); do find "$cgroup" -depth -type d -exec rmdir {} + ; done
    ip netns pids kube-n$i 2>/dev/null | xargs -r kill -KILL || true
    ip netns delete kube-n$i 2>/dev/null || true
  done
  ip link delete kbr0 2>/dev/null || true
  rm -rf "$state" "$dir/kubeconfig" "$dir/module"
  # Where nodes had mounts; on a machine that uses them they are not empty.
  rmdir /var/lib/kubelet /var/lib/dhow-e2e /var/log/pods /var/log/containers 2>/dev/null || true
}

run() {
  up
  trap down EXIT
  make -C "$repo" e2e CLUSTER=kubeconfig KUBECONFIG="$dir/kubeconfig" PUSH=$gateway:5001/dhow PLAIN_HTTP=1
  cd "$repo"
  KUBECONFIG=$dir/kubeconfig REGISTRY_HOST=$gateway go test -tags e2e,kubernetes -count=1 -v -timeout 30m -run '^TestKubernetes$' ./e2e/kubectl
}

case ${1:-} in
  up | down | run) "$1" ;;
  *) fail "up, down or run, and a folder: see the head of tools/kubernetes.sh" ;;
esac
