//! The shortest way through the machine.
use super::super::*;
use crate::messages::*;
use crate::spec::*;

#[test]
fn two_groups_run_one_after_the_other() {
    let mut s = Scheduler::new(Config::standard(), 0);
    let mut out = Vec::new();
    let group = |name: &str, deps: Vec<Dependency>| GroupSpec {
        name: name.into(),
        component: "c".into(),
        length: Length::Fixed(3),
        dependencies: deps,
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Policy::default(),
        resources: Resources { milli_cpus: 1000, ..Default::default() },
    };
    let spec = RunSpec {
        name: "run-a".into(),
        owner: "me".into(),
        weight: 1,
        client_key: [1; 16],
        max_failures: 0,
        totals: vec![],
        groups: vec![group("a", vec![]), group("b", vec![Dependency { group: 0, kind: DependencyKind::Whole }])],
    };
    s.step(0, Input::Submit(Box::new(spec)), &mut out);
    let session = SessionId(1);
    let worker = WorkerSpec {
        name: "w".into(),
        pool: "p".into(),
        components: vec!["*".into()],
        capacity: Resources { milli_cpus: 2000, memory_bytes: 1 << 30, ..Default::default() },
    };
    s.step(1, Input::Join { session, worker }, &mut out);
    s.step(2, Input::Attach { session, connection: Connection::Data }, &mut out);
    let mut seen = 0;
    let mut ended = None;
    while seen < out.len() {
        let o = out[seen].clone();
        seen += 1;
        if let Output::Dispatch { dispatch, .. } = &o {
            let finish = Finish {
                class: OutcomeClass::Succeeded,
                exit_code: Some(0),
                signalled: false,
                wall: 10,
                cpu: 5,
                peak_memory_bytes: 0,
                length: None,
                token: 7,
            };
            let events = vec![
                WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind: EventKind::Started },
                WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind: EventKind::Finished(finish) },
            ];
            s.step(3 + seen as u64, Input::Events { session, events }, &mut out);
        }
        if let Output::RunEnded { end, .. } = o {
            ended = Some(end);
        }
        s.check().unwrap();
    }
    assert_eq!(ended, Some(RunEnd::Succeeded), "{out:#?}");
}
