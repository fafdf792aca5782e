//! Commands as processes: their end, their output, their environment, what they leave behind.

use nix::sys::signal::Signal;
use scalable_proto::v1::*;

use crate::fake::*;

#[tokio::test]
async fn one_command_from_registration_to_report() {
    let mut fake = Fake::start().await;
    let mut worker =
        fake.worker(&["--pool", "p", "--components", "a,b", "--memory", "1GiB", "--gpus", "1", "--resource", "licence=3"]);
    let Event::Hello(hello) = fake.until(|event| matches!(event, Event::Hello(_))).await else { unreachable!("asked for") };
    assert_eq!((hello.name.as_str(), hello.pool.as_str()), ("w", "p"));
    assert_eq!(hello.components, ["a", "b"]);
    let offered = hello.resources.expect("offered");
    assert_eq!((offered.milli_cpus, offered.memory_bytes, offered.gpus), (2000, 1 << 30, 1));
    assert_eq!((offered.custom[0].name.as_str(), offered.custom[0].amount), ("licence", 3));
    assert_eq!(hello.pid, worker.child.id());
    fake.attached().await;
    fake.announce(&[("g", argv(&["true"]), plain())]);
    let report = fake.execute(1, 0).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded);
    assert!(report.started_us > 1_600_000_000_000_000 && report.finished_us > report.started_us);
    assert!(report.peak_memory_bytes > 0);
    assert!(!fake.exists("attempts") && !fake.exists("logs") && !fake.exists("objects"), "nothing is made that is not needed");
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.code().await, Some(0));
}

#[tokio::test]
async fn exit_codes_signals_and_output() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut odd = argv(&["sh", "-c", "exit 3"]);
    odd.success_codes = vec![0, 3];
    fake.announce(&[
        ("code", argv(&["sh", "-c", "echo out; echo err >&2; exit 7"]), plain()),
        ("signal", argv(&["sh", "-c", "kill -USR1 $$"]), plain()),
        ("odd", odd, plain()),
        ("loud", argv(&["sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 1"]), plain()),
        ("said", argv(&["echo", "hello"]), plain()),
    ]);
    let report = fake.execute(1, 0).await;
    assert_eq!((report.class(), report.exit_code, report.signal), (OutcomeClass::AppError, Some(7), None));
    assert_eq!((&report.stdout_tail[..], &report.stderr_tail[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!((report.stdout_bytes, report.stderr_bytes), (4, 4));
    assert_eq!(report.message, "the command ended with exit code 7");
    assert_eq!(report.rerun, format!("cd {} && sh -c 'echo out; echo err >&2; exit 7'", fake.base().display()));
    assert_eq!((fake.read("logs/code/0.1.stdout"), fake.read("logs/code/0.1.stderr")), ("out\n".into(), "err\n".into()));
    let report = fake.execute(2, 0).await;
    assert_eq!((report.class(), report.exit_code, report.signal), (OutcomeClass::AppError, None, Some(10)));
    assert_eq!(report.message, "the command was ended by signal 10 (SIGUSR1)");
    assert!(!fake.exists("logs/signal"), "a file begins with its first byte");
    let report = fake.execute(3, 0).await;
    assert_eq!((report.class(), report.exit_code), (OutcomeClass::Succeeded, Some(3)));
    let report = fake.execute(4, 0).await;
    let log = fake.read("logs/loud/0.1.stdout");
    assert_eq!((log.len() as u64, log.lines().count()), (report.stdout_bytes, 20_000));
    assert_eq!(&report.stdout_tail[..], &log.as_bytes()[log.len() - (16 << 10)..]);
    let report = fake.execute(5, 0).await;
    assert_eq!((&report.stdout_tail[..], report.stdout_bytes), (&b"hello\n"[..], 6));
    assert_eq!(report.key.len(), 32);
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    std::fs::write(fake.base().join("script"), "echo no first line").expect("written");
    let mut elsewhere = argv(&["true"]);
    elsewhere.start_in = StartIn::Work as i32;
    fake.announce(&[
        ("missing", argv(&["no-such-program-here", "x"]), plain()),
        ("path", argv(&["./none"]), plain()),
        ("script", argv(&["./script"]), plain()),
        ("long", argv(&["echo", &"x".repeat(3 << 20)]), plain()),
        ("unknown", argv(&["echo", "{o:none}"]), plain()),
        ("nul", argv(&["echo", "a\0b"]), plain()),
        ("../evil", argv(&["true"]), plain()),
        ("empty", TaskTemplate::default(), plain()),
    ]);
    let expected = [
        (1, "command no-such-program-here was not found; looked for "),
        (2, "command ./none was not found"),
        (3, "command ./script may not be executed (permission denied)"),
        (4, "arguments and environment are too long"),
        (5, "the command names output `none`, which the task does not have"),
        (6, "NUL byte"),
        (7, "group \"../evil\" cannot be part of a path"),
        (8, "the task has no command"),
        (99, "the scheduler never announced its group"),
    ];
    for (group, message) in expected {
        let report = fake.execute(group, 0).await;
        assert_eq!(report.class(), OutcomeClass::InfraStart, "{group}: {report:?}");
        assert!(report.message.contains(message), "{group}: {}", report.message);
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(fake.base().join("script"), std::fs::Permissions::from_mode(0o755)).expect("set");
    let report = fake.execute(3, 1).await;
    assert!(report.message.contains("a script needs a first line such as #!/bin/sh"), "{}", report.message);
    assert_eq!(fake.execute(1, 1).await.class(), OutcomeClass::InfraStart, "and the worker goes on");
}

#[tokio::test]
async fn the_environment_is_the_attempt_s_and_holds_no_token() {
    let mut fake = Fake::start().await;
    // SAFETY-free: set for the worker's process only.
    let _worker = fake.ready(&[]).await;
    let mut template = argv(&[
        "sh",
        "-c",
        "env; echo pwd=$(pwd); ls -l /proc/self/fd | wc -l; cat /proc/self/status | grep -E 'Sig(Blk|Ign)'; ps -o pgid= -o sid= -o pid= -p $$",
    ]);
    template.env.insert("MODEL".into(), text("a b{p:n}"));
    template.env.insert("SCALABLE_RUN".into(), literal("forged"));
    template.env.insert("PATH".into(), literal("/usr/bin:/bin"));
    let axis = ParameterAxis {
        name: "n".into(),
        values: Some(parameter_axis::Values::Range(IntRange { start: 10, step: 1, count: 5 })),
    };
    let space = ParameterSpace { kind: Some(parameter_space::Kind::Product(Product { axes: vec![axis] })) };
    fake.announce(&[("a group", template, space)]);
    let report = fake.execute(1, 2).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    let said = fake.read("logs/a group/2.1.stdout");
    for line in [
        "SCALABLE_RUN=run-test",
        "SCALABLE_GROUP=a group",
        "SCALABLE_INDEX=2",
        "SCALABLE_ATTEMPT=1",
        "MODEL=a b12",
        "SCALABLE_TASK_ID=4294967298",
        "PATH=/usr/bin:/bin",
    ] {
        assert_eq!(said.lines().filter(|l| *l == line).count(), 1, "{line} in {said}");
    }
    assert!(!said.contains("TOKEN") && !said.contains("SCALABLE_WORKDIR"), "{said}");
    assert!(said.contains(&format!("pwd={}", fake.base().display())), "{said}");
    // ls itself opens one for the directory: 0, 1, 2, 3, and the line with the total.
    assert!(said.lines().any(|line| line.trim() == "5"), "more files than its streams: {said}");
    assert!(said.contains("SigBlk:\t0000000000000000") && said.contains("SigIgn:\t0000000000000000"), "{said}");
    let ids: Vec<&str> = said.lines().last().expect("ps").split_whitespace().collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "its own session and group: {ids:?}");
}

#[tokio::test]
async fn nothing_of_an_attempt_is_left_when_it_is_reported() {
    let mut fake = Fake::start().await;
    let worker = fake.ready(&[]).await;
    let daemon = |script: &str| {
        let python = format!("import os,signal,time,sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{script}");
        argv(&["python3", "-c", &python])
    };
    let wait = "open(sys.argv[1] if len(sys.argv)>1 else '/dev/null')\n";
    let forks = "def child(hide):\n  r,w=os.pipe()\n  if os.fork()==0:\n    os.setsid()\n    if os.fork()>0: os._exit(0)\n    os.write(w,b'x')\n    \
                 [os.execvpe('sleep',['sleep','1000'],dict(PATH=os.environ['PATH'])) if hide else time.sleep(1000)]\n  os.read(r,1)\n";
    fake.announce(&[
        ("group", daemon(&format!("{wait}if os.fork()==0: time.sleep(1000)")), plain()),
        ("session", daemon(&format!("{forks}child(False)")), plain()),
        ("hidden", daemon(&format!("{forks}child(True)")), plain()),
        ("many", daemon(&format!("{forks}[child(n%2==0) for n in range(20)]")), plain()),
        ("background", shell("sleep 1000 & (setsid sleep 1000 &) ; true"), plain()),
    ]);
    for group in 1..=5 {
        let report = fake.execute(group, 0).await;
        assert_eq!(report.class(), OutcomeClass::Succeeded, "{group}: {report:?}");
        let left = descendants(worker.pid().as_raw());
        assert!(left.is_empty(), "{group}: {left:?}");
    }
}

/// Living processes below a process, with their commands.
pub fn descendants(pid: i32) -> Vec<String> {
    let alive = |pid: &i32| scalable_worker::descendants::session_of(*pid).is_some_and(|(_, zombie)| !zombie);
    let below = scalable_worker::descendants::tree(pid).into_iter().skip(1).filter(alive);
    below.map(|pid| format!("{pid} {}", std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default())).collect()
}

#[tokio::test]
async fn a_timeout_ends_even_what_ignores_sigterm() {
    let mut fake = Fake::start().await;
    let worker = fake.ready(&[]).await;
    fake.announce(&[
        ("polite", argv(&["sleep", "1000"]), plain()),
        ("stubborn", shell("trap '' TERM; echo on; while true; do sleep 0.05; done"), plain()),
        ("stopped", shell("kill -STOP $$; sleep 1000"), plain()),
    ]);
    for (group, signal) in [(1, 15), (2, 9), (3, 15)] {
        let handle = fake.dispatch(group, 0, 1, 200);
        let report = fake.finished(handle).await;
        assert_eq!((report.class(), report.signal), (OutcomeClass::Timeout, Some(signal)), "{report:?}");
        assert!(report.message.contains("ran into its timeout"), "{}", report.message);
        assert!(report.finished_us - report.started_us >= 200_000);
        assert!(descendants(worker.pid().as_raw()).is_empty());
    }
}

#[tokio::test]
async fn cancel_and_retract() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[("long", argv(&["sleep", "1000"]), plain())]);
    let executing = fake.dispatch(1, 0, 2, 0);
    fake.started(executing).await;
    let queued = fake.dispatch(1, 1, 2, 0);
    let unseen = fake.handle();
    fake.control(scheduler_control::Body::Retract(Retract { handles: vec![executing, queued, unseen] }));
    // The queued one may not have arrived either: both ways it is given back.
    let event = fake.until(|event| matches!(event, Event::Control(worker_control::Body::RetractReply(_)))).await;
    let Event::Control(worker_control::Body::RetractReply(reply)) = event else { unreachable!("asked for") };
    assert_eq!((reply.given_back, reply.kept), (vec![queued, unseen], vec![executing]));
    fake.dispatch_as(unseen, 1, 2, 1, 0);
    fake.control(scheduler_control::Body::Cancel(CancelAttempts { handles: vec![executing], reason: "enough".into() }));
    let report = fake.finished(executing).await;
    assert_eq!((report.class(), report.signal), (OutcomeClass::Cancelled, Some(15)));
    let next = fake.dispatch(1, 3, 1, 0);
    fake.started(next).await;
    assert!(fake.rest().iter().all(|event| !matches!(event, Event::Started { .. })), "what was given back never starts");
}

#[tokio::test]
async fn a_task_above_its_memory_limit_is_ended_by_the_watch() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&["--memory", "4GiB"]).await;
    let hog = "x=[]\nwhile True: x.append(bytearray(4<<20)); import time; time.sleep(0.002)";
    fake.announce(&[
        ("hog", argv(&["python3", "-c", hog]), plain()),
        ("child", shell(&format!("python3 -c '{hog}' ; true")), plain()),
    ]);
    fake.shape(7, Resources { milli_cpus: 500, memory_bytes: 200 << 20, ..Resources::default() });
    for group in [1, 2] {
        let handle = fake.dispatch(group, 0, 7, 0);
        let report = fake.finished(handle).await;
        assert_eq!(report.class(), OutcomeClass::Oom, "{report:?}");
        assert_eq!(report.memory_limit_bytes, 200 << 20);
        assert!(report.peak_memory_bytes > 200 << 20, "{}", report.peak_memory_bytes);
        assert!(report.message.contains("its limit is 200.0 MiB"), "{}", report.message);
    }
}

#[tokio::test]
async fn a_task_above_its_memory_limit_is_ended_by_its_cgroup() {
    if let Err(why) = scalable_worker::cgroup::Cgroups::detect() {
        eprintln!("SKIPPED: no memory cgroup may be made here: {why}");
        return;
    }
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&["--memory", "4GiB", "--memory-limit", "cgroup"]).await;
    let hog = "x=bytearray(300<<20)\nimport sys; print(sum(x[::4096]))";
    fake.announce(&[
        ("hog", argv(&["python3", "-c", hog]), plain()),
        ("child", shell(&format!("python3 -c '{hog}'; exit $?")), plain()),
        ("fits", argv(&["python3", "-c", "x=bytearray(100<<20)\nprint(sum(x[::4096]))"]), plain()),
    ]);
    fake.shape(7, Resources { milli_cpus: 500, memory_bytes: 200 << 20, ..Resources::default() });
    for group in [1, 2] {
        let handle = fake.dispatch(group, 0, 7, 0);
        let report = fake.finished(handle).await;
        assert_eq!(report.class(), OutcomeClass::Oom, "{report:?}");
        assert_eq!(report.memory_method(), MemoryMethod::Cgroup);
        assert!((150 << 20..=201 << 20).contains(&report.peak_memory_bytes), "{}", report.peak_memory_bytes);
    }
    let handle = fake.dispatch(3, 0, 7, 0);
    let report = fake.finished(handle).await;
    assert_eq!((report.class(), report.memory_method()), (OutcomeClass::Succeeded, MemoryMethod::Cgroup));
    assert!((100 << 20..200 << 20).contains(&report.peak_memory_bytes), "{}", report.peak_memory_bytes);
}

#[tokio::test]
async fn figures_of_what_it_used() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let busy =
        "import os,time\nx=bytearray(150<<20)\nsum(x[::4096])\nend=time.process_time()+0.4\nwhile time.process_time()<end: pass";
    fake.announce(&[("busy", argv(&["python3", "-c", busy]), plain())]);
    let report = fake.execute(1, 0).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    assert!(report.user_us + report.system_us >= 400_000 && report.user_us + report.system_us < 30_000_000);
    assert!(report.finished_us - report.started_us >= 400_000);
    assert!((150 << 20..400 << 20).contains(&report.peak_memory_bytes), "{}", report.peak_memory_bytes);
}

#[tokio::test]
async fn no_task_outlives_its_agent() {
    let mut fake = Fake::start().await;
    let worker = fake.ready(&[]).await;
    fake.announce(&[("long", argv(&["sleep", "1000"]), plain())]);
    let handle = fake.dispatch(1, 0, 1, 0);
    fake.started(handle).await;
    let task = loop {
        let below = scalable_worker::descendants::tree(worker.pid().as_raw());
        if let Some(pid) = below.get(1) {
            break *pid;
        }
        tokio::task::yield_now().await;
    };
    worker.signal(Signal::SIGKILL);
    // A read end that is closed when the last process with the other one is gone would do, too: here the process itself is asked.
    while scalable_worker::descendants::session_of(task).is_some_and(|(_, zombie)| !zombie) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn two_at_a_time_and_never_over_committed() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let script = "echo start >> notes; sleep 0.05; echo end >> notes";
    fake.announce(&[("g", shell(script), plain())]);
    fake.shape(3, Resources { milli_cpus: 1000, ..Resources::default() });
    let handles: Vec<u64> = (0..20).map(|index| fake.dispatch(1, index, 3, 0)).collect();
    for handle in handles {
        assert_eq!(fake.finished(handle).await.class(), OutcomeClass::Succeeded);
    }
    let (mut now, mut most) = (0, 0);
    for line in std::fs::read_to_string(fake.base().join("notes")).expect("written").lines() {
        now += if line == "start" { 1 } else { -1 };
        most = most.max(now);
    }
    assert_eq!(most, 2);
}

#[tokio::test]
async fn ten_thousand_no_ops_leave_no_file_open() {
    let mut fake = Fake::start().await;
    let worker = fake.ready(&[]).await;
    fake.announce(&[("g", argv(&["/bin/true"]), plain())]);
    let open = |worker: &Running| std::fs::read_dir(format!("/proc/{}/fd", worker.pid())).expect("it runs").count();
    let mut before = 0;
    for round in 0..20 {
        let handles: Vec<u64> = (0..500).map(|index| fake.dispatch(1, round * 500 + index, 1, 0)).collect();
        for handle in handles {
            assert_eq!(fake.finished(handle).await.class(), OutcomeClass::Succeeded);
        }
        if round == 0 {
            before = open(&worker);
        }
    }
    assert!(open(&worker) <= before, "{before} files before, {} after", open(&worker));
    assert!(descendants(worker.pid().as_raw()).is_empty());
}
