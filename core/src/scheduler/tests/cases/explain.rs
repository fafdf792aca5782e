//! Why a task is where it is, in words.

use super::super::world::check;

#[test]
fn what_no_pool_can_ever_hold_is_refused() {
    check(
        "what no pool can ever hold is refused",
        r#"
        > submit a:1 cpus=64
        > cancel run
        a[0] cancelled
        run r Cancelled
        > forget
        > pool k8s comp=model
        > submit a:1 comp=model cpus=2
        refused E_NO_POOL_FITS: a task of 'a' needs 2 cpus, and a worker of pool 'k8s', the largest that serves component 'model', has 1 cpu
        > submit a:1 comp=mudel
        refused E_NO_POOL_FITS: no pool serves component 'mudel', for which 'a' asks; there are: 'k8s'
        > join w1 cpus=2 comp=mudel
        > submit a:1 comp=mudel cpus=2
        w1 <- a[0]#1
        "#,
    );
}

#[test]
fn explain_nothing_serves_the_component() {
    check(
        "explain: nothing serves the component",
        r#"
        > submit a:1 comp=model
        > explain a[0]
        ready: no worker and no pool serves component 'model'
        > join w0 comp=tools
        > explain a[0]
        ready: no worker and no pool serves component 'model'
        > pool k8s comp=model starting=2 note=0/3_nodes_are_available:_insufficient_cpu
        > explain a[0]
        ready: pool 'k8s' serves component 'model' and has no worker: 2 starting; 0/3 nodes are available: insufficient cpu
        "#,
    );
}

#[test]
fn explain_no_room() {
    check(
        "explain: no room",
        r#"
        > submit a:2 cpus=2 mem=600 ; b:1 cpus=8 ; c:1 gpus=1 ; d:1 takes=scratch:1
        > join w1 cpus=3 mem=1000
        w1 <- a[0]#1 with 600 MiB
        > join w2 cpus=1 mem=4000
        > explain a[1]
        ready: it needs 2 cpus, 600 MiB of memory, and no worker has that many cpus free: 1 of 3 cpus are free on workers that serve component 'c' and are large enough (of 1)
        > explain b[0]
        ready: it needs 8 cpus, and the largest worker that serves component 'c' (of 2) has 3 cpus, 1000 MiB of memory
        > explain c[0]
        ready: it needs 1 cpu, 1 gpu, and the largest worker that serves component 'c' (of 2) has 3 cpus, 1000 MiB of memory
        > join w3 cpus=1 has=scratch:1
        w3 <- d[0]#1
        > join w4 cpus=3 mem=400
        > explain a[1]
        ready: it needs 2 cpus, 600 MiB of memory, and no worker has that many cpus free: 1 of 3 cpus are free on workers that serve component 'c' and are large enough (of 1)
        "#,
    );
}

#[test]
fn explain_a_dependency_by_name_and_how_many_more() {
    check(
        "explain: a dependency by name, and how many more",
        r#"
        > submit a:3 ; b:1 after=a ; c:1 into=a
        > explain b[0]
        waiting: it waits for all of 'a': 0 of 3 are over, 3 ready
        > explain c[0]
        waiting: it waits for a[0], which is ready, and for 2 more of the 3 elements it needs
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > explain c[0]
        waiting: it waits for a[0], which is running, and for 2 more of the 3 elements it needs
        > explain b[0]
        waiting: it waits for all of 'a': 0 of 3 are over, 1 executing, 2 ready
        > explain a[7]
        nothing
        "#,
    );
}
