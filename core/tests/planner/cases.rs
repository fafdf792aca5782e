//! What the planner does about one situation, case by case.

use scalable_core::ids::{Micros, SECOND};
use scalable_core::planner::{
    Blocked, DecisionLog, Group, HEALTHY_AFTER, Limit, Obstacle, Parameters, Phase, Planner, Pool, PoolEvent, PoolPlan, Running,
    Snapshot, Worker, WorkerKey, slots,
};
use scalable_core::resources::Resources;

const T0: Micros = 1_000 * SECOND;

fn pool(name: &str, minimum: u32, maximum: u32) -> Pool {
    Pool {
        name: name.to_owned(),
        minimum,
        maximum,
        minimum_at_once: false,
        parameters: Parameters::DEFAULT,
        groups: vec![],
        workers: vec![],
        room_coming: false,
        object_bytes_per_worker: None,
    }
}

/// Tasks of a group of known duration in seconds.
fn group(slots: u32, queued: u32, seconds: u64) -> Group {
    Group { slots, queued, measured: Some(seconds * SECOND), ..Group::default() }
}

fn worker(key: u64, asked_at: Micros, phase: Phase) -> Worker {
    Worker { key: WorkerKey(key), asked_at, phase }
}

fn idle(key: u64, since: Micros) -> Worker {
    holder(key, since, 0)
}

fn holder(key: u64, since: Micros, only_bytes: u64) -> Worker {
    let phase = Phase::Ready { registered_at: 0, idle_since: Some(since), running: vec![], only_bytes };
    worker(key, 0, phase)
}

/// Executes tasks of group 0 that started at these times.
fn busy(key: u64, started: &[Micros]) -> Worker {
    let running = started.iter().map(|&started_at| Running { group: 0, started_at }).collect();
    worker(key, 0, Phase::Ready { registered_at: 0, idle_since: None, running, only_bytes: 0 })
}

fn starting(key: u64, asked_at: Micros) -> Worker {
    worker(key, asked_at, Phase::Starting { blocked: None })
}

fn blocked(key: u64, by: Obstacle, since: Micros) -> Worker {
    worker(key, since, Phase::Starting { blocked: Some(Blocked { by, since }) })
}

fn plan_all(planner: &mut Planner, now: Micros, max_total: Option<u32>, pools: &[Pool]) -> Vec<PoolPlan> {
    planner.plan(now, &Snapshot { pools: pools.to_vec(), max_total }).pools
}

fn plan(planner: &mut Planner, now: Micros, pool: &Pool) -> PoolPlan {
    plan_all(planner, now, None, std::slice::from_ref(pool)).remove(0)
}

fn first(pool: &Pool) -> PoolPlan {
    plan(&mut Planner::default(), T0, pool)
}

fn keys(plan: &PoolPlan) -> Vec<u64> {
    plan.drain.iter().map(|drain| drain.worker.0).collect()
}

#[test]
fn from_zero_the_first_task_makes_a_worker_at_once() {
    let mut pool = pool("demeter", 0, 10);
    assert_eq!(first(&pool).create, 0);
    pool.groups = vec![Group { slots: 4, queued: 1, ..Group::default() }];
    let made = first(&pool);
    assert_eq!(made.create, 1);
    assert_eq!(
        made.decision.reason,
        "creates 1: 1 tasks queued need 4 s of a worker within 120 s, 0 ready and 0 starting workers can do 0 s of it"
    );
    pool.workers = vec![starting(1, T0)];
    assert_eq!(first(&pool).create, 0, "it is on its way");
}

#[test]
fn as_many_as_the_window_needs_and_never_more_than_there_are_tasks_for() {
    let mut pool = pool("p", 0, 1000);
    pool.parameters.scale_up_burst = 1000;
    // 100 tasks of 40 min, 4 to a worker: 100 x 120 s of the window / (4 x 60 s) is 50, but 25 hold them all.
    pool.groups = vec![group(4, 100, 2400)];
    assert_eq!(first(&pool).create, 25);
    // 1,000 tasks of 6 s: 6,000 s / (4 x 60 s).
    pool.groups = vec![group(4, 1000, 6)];
    assert_eq!(first(&pool).create, 25);
    pool.workers = (0..25).map(|key| starting(key, T0)).collect();
    assert_eq!(first(&pool).create, 0, "those that start count");
}

#[test]
fn the_minimum_starts_with_the_first_task_or_a_start_before_it_and_stays() {
    let mut pool = pool("p", 3, 10);
    pool.parameters.scale_up_burst = 1;
    let mut planner = Planner::default();
    assert_eq!(plan(&mut planner, T0, &pool).create, 0, "nothing needs it yet");
    pool.groups = vec![Group { slots: 1, soon: 1, soon_in: 61 * SECOND, ..Group::default() }];
    let snapshot = Snapshot { pools: vec![pool.clone()], max_total: None };
    let early = planner.plan(T0, &snapshot);
    assert_eq!((early.pools[0].create, early.again_at), (0, Some(T0 + SECOND)), "further ahead than a start takes");
    pool.groups[0].soon_in = 60 * SECOND;
    let made = plan(&mut planner, T0 + SECOND, &pool);
    assert_eq!(made.create, 3, "all of it at once");
    assert_eq!(made.decision.reason, "creates 3: its minimum is 3 and it has 0");
    pool.groups.clear();
    pool.workers = (0..3).map(|key| idle(key, T0 + SECOND)).collect();
    assert_eq!(plan(&mut planner, T0 + 3600 * SECOND, &pool).drain, vec![], "without work it keeps it");
    pool.workers.pop();
    assert_eq!(plan(&mut planner, T0 + 3601 * SECOND, &pool).create, 1, "and makes up for a loss");

    let at_once = Pool { minimum_at_once: true, groups: vec![], workers: vec![], ..pool };
    assert_eq!(first(&at_once).create, 3);
}

#[test]
fn work_that_is_nearly_ready_has_its_workers_started_before() {
    let mut pool = pool("p", 0, 100);
    pool.groups = vec![Group { soon: 40, soon_in: 30 * SECOND, ..group(4, 0, 600) }];
    assert_eq!(first(&pool).create, 10);
    pool.workers = (0..10).map(|key| idle(key, 0)).collect();
    assert_eq!(first(&pool).drain, vec![], "and idle ones wait for it");
    pool.groups[0].soon_in = 61 * SECOND;
    assert_eq!(keys(&first(&pool)).len(), 10, "what lies further ahead than a start does not keep them");
}

#[test]
fn a_start_takes_as_long_as_the_latest_did() {
    let mut pool = pool("p", 0, 100);
    let mut planner = Planner::default();
    assert_eq!(plan(&mut planner, T0, &pool).decision.figures.start, 60 * SECOND);
    for took in [2, 90, 3] {
        planner.observe(T0, "p", &PoolEvent::Started { asked_at: T0 - 90 * SECOND, took: took * SECOND });
    }
    let figures = plan(&mut planner, T0, &pool).decision.figures;
    assert_eq!((figures.start, figures.window), (3 * SECOND, 63 * SECOND));
    // One that is late by more than twice that fades out of what is counted on: 63 s - (60 - 2 x 3) s.
    pool.groups = vec![group(1, 1, 600)];
    pool.workers = vec![starting(1, T0 - 60 * SECOND)];
    assert_eq!(plan(&mut planner, T0, &pool).decision.figures.supply_ms, 9_000);
}

#[test]
fn idle_workers_go_after_the_delay_and_down_to_zero() {
    let mut pool = pool("p", 0, 10);
    pool.groups = vec![group(1, 0, 10)];
    let mut planner = Planner::default();
    pool.workers = (0..4).map(|key| busy(key, &[T0])).collect();
    assert_eq!(plan(&mut planner, T0, &pool).drain, vec![]);
    pool.workers = (0..4).map(|key| idle(key, T0 + 10 * SECOND)).collect();
    for second in 10..60 {
        assert_eq!(plan(&mut planner, T0 + second * SECOND, &pool).drain, vec![], "second {second}");
    }
    let gone = plan(&mut planner, T0 + 62 * SECOND, &pool);
    assert_eq!(keys(&gone), vec![3, 2, 1, 0]);
    assert_eq!(gone.decision.reason, "lets 4 of 4 idle workers go: no more than 0 were wanted lately");
    // One that has only just become idle stays a little.
    pool.workers[0] = idle(0, T0 + 50 * SECOND);
    assert_eq!(keys(&plan(&mut planner, T0 + 62 * SECOND, &pool)), vec![3, 2, 1]);
    pool.workers[0] = busy(0, &[T0]);
    assert_eq!(keys(&plan(&mut planner, T0 + 3600 * SECOND, &pool)), vec![3, 2, 1], "never a busy one");
}

#[test]
fn with_nothing_to_wait_for_it_does_not_ask_to_be_called_again() {
    let mut pool = pool("p", 1, 10);
    pool.workers = vec![idle(1, 0)];
    let again = |pool: &Pool| Planner::default().plan(T0, &Snapshot { pools: vec![pool.clone()], max_total: None }).again_at;
    assert_eq!(again(&pool), None, "the minimum is there and nothing is queued");
    pool.workers.push(idle(2, 0));
    assert_eq!(again(&pool), Some(T0 + SECOND), "one is to spare");
    pool.workers = vec![busy(1, &[T0]), busy(2, &[T0])];
    assert_eq!(again(&pool), None, "all are busy and nothing is queued");
}

#[test]
fn a_free_half_is_no_room_for_a_task_that_takes_a_whole_worker() {
    let mut pool = pool("p", 0, 10);
    pool.groups = vec![group(2, 0, 36_000), group(1, 1, 1)];
    pool.workers = vec![busy(1, &[T0])];
    assert_eq!(first(&pool).create, 1);
    pool.groups[1].slots = 2;
    assert_eq!(first(&pool).create, 0, "a task that takes half of one is placed there");
}

#[test]
fn slots_count_the_scarcest_resource() {
    let capacity = Resources { milli_cpus: 4000, memory_bytes: 16 << 30, gpus: 1, ..Resources::default() };
    let request = |milli_cpus, memory_bytes, gpus| Resources { milli_cpus, memory_bytes, gpus, ..Resources::default() };
    assert_eq!(slots(&capacity, &request(1000, 1 << 30, 0), 64), 4);
    assert_eq!(slots(&capacity, &request(1000, 6 << 30, 0), 64), 2);
    assert_eq!(slots(&capacity, &request(100, 0, 1), 64), 1);
    assert_eq!(slots(&capacity, &request(0, 0, 0), 64), 64);
    assert_eq!(slots(&capacity, &request(9000, 0, 0), 64), 1);
}

#[test]
fn those_that_drain_count_against_the_maximum_only() {
    let mut pool = pool("p", 0, 4);
    pool.groups = vec![group(1, 100, 600)];
    pool.workers = vec![worker(1, 0, Phase::Draining), worker(2, 0, Phase::Draining), busy(3, &[T0])];
    let made = first(&pool);
    assert_eq!((made.create, made.decision.limit), (1, Some(Limit::Maximum(4))));
}

#[test]
fn objects_are_moved_first_and_stay_where_they_would_not_fit() {
    let mut pool = pool("p", 0, 10);
    pool.workers = vec![holder(1, 0, 500), holder(2, 0, 0), holder(3, 0, 100)];
    let gone = first(&pool);
    let order: Vec<_> = gone.drain.iter().map(|drain| (drain.worker.0, drain.move_first)).collect();
    assert_eq!(order, vec![(2, false), (3, true), (1, true)], "the least to move first");
    // 600 bytes, of which one worker keeps 60 % of 600: two must stay.
    pool.object_bytes_per_worker = Some(600);
    assert_eq!(keys(&first(&pool)), vec![2]);
}

#[test]
fn beside_many_without_room_none_is_created_and_after_a_while_few_wait() {
    let mut pool = pool("p", 0, 100);
    pool.groups = vec![group(1, 1000, 600)];
    pool.parameters.scale_up_burst = 100;
    let mut planner = Planner::default();
    pool.workers = (0..9).map(|key| blocked(key, Obstacle::Unschedulable, T0)).collect();
    assert!(plan(&mut planner, T0, &pool).create > 0, "nine are not yet many");
    pool.workers.push(blocked(9, Obstacle::Unschedulable, T0 + SECOND));
    let held = plan(&mut planner, T0 + SECOND, &pool);
    assert_eq!(held.decision.limit, Some(Limit::Blocked { by: Obstacle::Unschedulable, workers: 10 }));
    assert!(held.decision.reason.ends_with("; no more while 10 are blocked: the cluster has no room for its workers"));
    pool.room_coming = true;
    assert!(plan(&mut planner, T0 + SECOND, &pool).create > 0, "room is coming");
    pool.room_coming = false;
    let trimmed = plan(&mut planner, T0 + 300 * SECOND, &pool);
    assert_eq!((trimmed.create, trimmed.cancel.len()), (0, 7), "three go on waiting");
    assert!(trimmed.decision.reason.starts_with("gives up 7 of 10 starting workers: 10 have waited too long"));
    pool.workers.retain(|worker| !trimmed.cancel.contains(&worker.key));
    for hour in 1..10 {
        let later = plan(&mut planner, T0 + hour * 3600 * SECOND, &pool);
        assert_eq!((later.create, later.cancel), (0, vec![]), "and that stays so");
    }
    for worker in &mut pool.workers {
        worker.phase = Phase::Starting { blocked: None };
    }
    assert!(plan(&mut planner, T0 + 36_000 * SECOND, &pool).create > 0, "they got room");
    pool.minimum = 8;
    pool.workers = (0..10).map(|key| blocked(key, Obstacle::Unschedulable, T0)).collect();
    assert_eq!(plan(&mut planner, T0 + 36_001 * SECOND, &pool).cancel.len(), 2, "the minimum goes on waiting");
}

#[test]
fn beside_three_stuck_starts_none_is_created() {
    let mut pool = pool("p", 0, 100);
    pool.groups = vec![group(1, 1000, 600)];
    pool.workers = (0..2).map(|key| blocked(key, Obstacle::Image, T0)).collect();
    assert!(first(&pool).create > 0);
    pool.workers.push(blocked(3, Obstacle::Image, T0));
    assert_eq!(first(&pool).decision.limit, Some(Limit::Blocked { by: Obstacle::Image, workers: 3 }));
}

#[test]
fn a_refused_quota_is_tried_again_one_by_one_with_the_platforms_words() {
    let mut pool = pool("p", 0, 100);
    pool.groups = vec![group(1, 1000, 600)];
    pool.workers = vec![busy(1, &[T0])];
    let mut planner = Planner::default();
    assert_eq!(plan(&mut planner, T0, &pool).create, 10);
    for _ in 0..10 {
        let message = "exceeded quota: pods=5".to_owned();
        planner.observe(T0 + 1, "p", &PoolEvent::Failed { asked_at: T0, by: Obstacle::Quota, message });
    }
    let waits = plan(&mut planner, T0 + 2, &pool);
    assert_eq!(waits.create, 0);
    assert!(waits.decision.reason.ends_with("; backing off, the quota is used up: exceeded quota: pods=5"), "{waits:?}");
    assert_eq!(plan(&mut planner, T0 + 5 * SECOND, &pool).create, 0);
    assert_eq!(plan(&mut planner, T0 + 5 * SECOND + 1, &pool).create, 1);
    planner.observe(T0 + 6 * SECOND, "p", &PoolEvent::Accepted { asked_at: T0 + 5 * SECOND + 1 });
    assert_eq!(plan(&mut planner, T0 + 20 * SECOND, &pool).create, 10, "there is room again");
}

#[test]
fn workers_that_keep_ending_pause_the_pool_until_one_lives() {
    let mut pool = pool("p", 0, 100);
    pool.groups = vec![group(1, 1000, 600)];
    let mut planner = Planner::default();
    let mut now = T0;
    plan(&mut planner, now, &pool);
    for wait in [0, 1, 2, 4] {
        let message = "exit code 127".to_owned();
        planner.observe(now + 1, "p", &PoolEvent::Died { asked_at: now, lived: SECOND, message });
        let due = now + 1 + wait * SECOND;
        if wait > 0 {
            assert_eq!(plan(&mut planner, due - 1, &pool).create, 0);
        }
        assert_eq!(plan(&mut planner, due, &pool).create, 1, "after {wait} s");
        now = due;
    }
    let paused = plan(&mut planner, now, &pool);
    assert!(matches!(paused.decision.limit, Some(Limit::Trouble { by: Obstacle::Crash, paused: true, .. })), "{paused:?}");
    let mut lives = busy(7, &[now]);
    lives.asked_at = now + 1;
    pool.workers = vec![lives];
    assert!(plan(&mut planner, now + HEALTHY_AFTER, &pool).create > 1);
}

#[test]
fn the_limit_over_all_pools_is_shared_and_the_poorest_gets_next() {
    let mut a = pool("a", 0, 100);
    a.groups = vec![group(1, 100, 600)];
    let b = Pool { name: "b".to_owned(), ..a.clone() };
    let plans = plan_all(&mut Planner::default(), T0, Some(10), &[a.clone(), b.clone()]);
    assert_eq!((plans[0].create, plans[1].create), (5, 5));
    assert_eq!(plans[0].decision.limit, Some(Limit::MaxTotal(10)));
    a.workers = (0..6).map(|key| busy(key, &[T0])).collect();
    let plans = plan_all(&mut Planner::default(), T0, Some(10), &[a, b]);
    assert_eq!((plans[0].create, plans[1].create), (0, 4));
}

#[test]
fn a_pool_with_more_than_its_share_gives_way_idle_before_busy() {
    let mut a = pool("a", 0, 100);
    a.groups = vec![group(1, 100, 600)];
    let mut b = pool("b", 0, 100);
    b.groups = vec![group(1, 1, 600)];
    a.workers = (0..8).map(|key| busy(key, &[T0 + key])).collect();
    a.workers.extend([starting(8, T0), starting(9, T0)]);
    let both = |a: &Pool, b: &Pool| plan_all(&mut Planner::default(), T0, Some(10), &[a.clone(), b.clone()]);
    let plans = both(&a, &b);
    assert_eq!((plans[0].cancel.as_slice(), plans[1].create), ([WorkerKey(9)].as_slice(), 0));

    a.workers.truncate(8);
    a.workers.extend([idle(8, 0), idle(9, T0)]);
    assert_eq!(keys(&both(&a, &b)[0]), vec![8], "the other one has only just become idle");

    a.workers.truncate(8);
    a.workers.extend([busy(8, &[0]), busy(9, &[T0])]);
    a.groups[0].measured = Some(2000 * SECOND);
    let plans = both(&a, &b);
    assert_eq!((plans[0].drain.len(), plans[0].give_way.as_slice()), (0, [WorkerKey(8)].as_slice()), "the one done first");
    assert_eq!(plans[0].decision.reason, "lets 1 busy workers leave when they are done: another pool has less than its share");
    a.workers[8].phase = Phase::Draining;
    let plans = both(&a, &b);
    assert_eq!((plans[0].give_way.len(), plans[1].create), (0, 0), "one is on its way out, that is enough");
    a.workers.remove(8);
    let plans = both(&a, &b);
    assert_eq!((plans[0].create, plans[1].create), (0, 1));

    // A pool that could not create one anyway makes nobody give way.
    let mut planner = Planner::default();
    a.workers.push(busy(10, &[T0]));
    plan_all(&mut planner, T0, Some(10), &[a.clone(), b.clone()]);
    planner.observe(T0 + 1, "b", &PoolEvent::Failed { asked_at: T0, by: Obstacle::Refused, message: String::new() });
    let plans = plan_all(&mut planner, T0 + 2, Some(10), &[a, b]);
    assert!(plans.iter().all(|plan| !plan.decision.acts()));
}

#[test]
fn the_log_keeps_what_changed_and_is_bounded() {
    let mut pool = pool("p", 0, 1);
    let mut planner = Planner::default();
    for round in 0..2 * DecisionLog::KEPT as u64 {
        pool.groups = if round % 2 == 0 { vec![group(1, 1, 600)] } else { vec![] };
        plan(&mut planner, T0 + round * SECOND, &pool);
        plan(&mut planner, T0 + round * SECOND, &pool);
    }
    assert_eq!(planner.log().iter().len(), DecisionLog::KEPT);
    assert!(planner.log().iter().all(|decision| decision.pool == "p" && decision.create == 1));
    assert!(planner.log().iter().map(|decision| decision.at).is_sorted());
    let kept = planner.log().iter().len();
    pool.workers = vec![busy(1, &[T0])];
    for _ in 0..100 {
        plan(&mut planner, T0, &pool);
    }
    assert_eq!(planner.log().iter().len(), kept, "that nothing changes is not written down");
}

#[test]
fn parameters_out_of_bounds_are_told_by_name() {
    assert_eq!(Parameters::DEFAULT.check(), Ok(()));
    let wrong = Parameters { target_duration: 0, ..Parameters::DEFAULT };
    assert_eq!(wrong.check(), Err("target_duration is 0 ms, must be 1000 to 86400000 ms".to_owned()));
    let wrong = Parameters { unschedulable_probe: 0, ..Parameters::DEFAULT };
    assert_eq!(wrong.check(), Err("unschedulable_probe is 0, must be 1 to 10000".to_owned()));
}
