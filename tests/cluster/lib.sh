# Shared by the commands beside it, which source it: words on stderr, where things are cached, which clusters run on this machine.
# shellcheck shell=bash

tool=${0##*/}
say() { printf '%s: %s\n' "$tool" "$*" >&2; }
stop() {
    say "$*"
    exit 2
}

cluster_source=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
kubernetes_version=$(sed -n 's|^\tk8s.io/kubernetes \(v[^ ]*\).*|\1|p' "$cluster_source/go/go.mod")

# One file for each cluster of this machine: the number it took (which is in its addresses, its interface and its cgroups), with the
# process 1 of its namespaces and its directory.
registry=/run/scalable-cluster
slots=8

need_root() {
    ((EUID == 0)) || stop "needs root (namespaces, mounts, cgroups): run it with sudo"
    [[ $(uname -s) == Linux ]] || stop "needs Linux"
}

# What was started at the given process id and time still runs. A zombie does not: not every machine has a process 1 that reaps.
runs() { # PID START
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The command's name may hold anything: fields are counted from behind its closing parenthesis.
    read -r -a stat <<<"${stat##*) }"
    [[ ${stat[0]} != Z && ${stat[19]} == "$2" ]]
}

start_time() { # PID
    local stat
    read -r stat <"/proc/$1/stat"
    read -r -a stat <<<"${stat##*) }"
    printf '%s' "${stat[19]}"
}

# The cluster in directory $1: sets $dir, $init and $slot. Fails when none runs there.
find_cluster() {
    local started
    dir=$(cd -- "$1" 2>/dev/null && pwd) || return 1
    { read -r init started slot <"$dir/init"; } 2>/dev/null || return 1
    runs "$init" "$started"
}

need_cluster() {
    find_cluster "$1" || stop "no cluster runs in '$1': start one with ${cluster_source}/up '$1'"
}

# Runs a command among the cluster's processes: in all namespaces that they share, with nothing of the caller's environment (a proxy,
# a kubeconfig) and without the locks that the caller holds.
enter() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        nsenter --target "$init" --mount --net --pid --uts --ipc "$@" 7>&- 8>&- 9>&-
}

# Runs one of the functions of `inside` there. The copy is the one that the cluster was started with.
inside() { enter bash /run/cluster/state/inside "$@"; }

# Ends every process of the cluster whose process 1 was $1, started at $2, and takes away what the kernel does not: cgroups, its number.
end_cluster() { # PID START SLOT
    local _ path left
    if runs "$1" "$2"; then kill -KILL "$1"; fi
    for _ in $(seq 300); do
        runs "$1" "$2" || break
        sleep 0.1
    done
    if runs "$1" "$2"; then stop "process $1 does not end: see 'cat /proc/$1/stack'"; fi
    # The interface ends with its peer's namespace, some time after the last process in there.
    ip link delete "scalable$3" 2>/dev/null || true
    for _ in $(seq 100); do
        left=
        for path in /sys/fs/cgroup/scalable-cluster-"$3" /sys/fs/cgroup/*/scalable-cluster-"$3"; do
            [[ -d $path ]] || continue
            find "$path" -depth -type d -exec rmdir {} + 2>/dev/null || left=$path
        done
        [[ -n $left ]] || break
        sleep 0.1
    done
    [[ -z $left ]] || say "the cgroup $left could not be removed: 'cat $left/cgroup.procs' says what is in it"
    rm -f -- "$registry/$3"
}

# Certificates and kubeconfigs, in DIR/pki and DIR.
certificate() { # NAME SUBJECT SUBJECT-ALTERNATIVE-NAMES
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/pki/$1.key" -subj "$2" 2>/dev/null |
        openssl x509 -req -CA "$dir/pki/ca.crt" -CAkey "$dir/pki/ca.key" -set_serial "0x$(openssl rand -hex 16)" -days 30 \
            -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3") \
            -out "$dir/pki/$1.crt" 2>/dev/null
}

kubeconfig() { # NAME SERVER: prints the file's path
    cat >"$dir/$1.kubeconfig" <<TEXT
apiVersion: v1
kind: Config
current-context: scalable-test
contexts: [{name: scalable-test, context: {cluster: scalable-test, user: $1}}]
clusters: [{name: scalable-test, cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$dir/pki/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$dir/pki/$1.crt"), client-key-data: $(base64 -w0 "$dir/pki/$1.key")}}]
TEXT
    chmod 600 "$dir/$1.kubeconfig"
    printf '%s\n' "$dir/$1.kubeconfig"
}

need_node() { # NAME
    [[ $1 =~ ^node[1-9]$ && -d $dir/$1 ]] || stop "the cluster in '$dir' has no node '$1': $(cd -- "$dir" && echo node[1-9])"
}
