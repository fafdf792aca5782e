//! What holds of every plan: random snapshots, and random worlds in virtual time.

use crate::fixture::{Listing, Task, scenarios};
use crate::policy::{Planned, actions};
use crate::world::{Actions, Placement, Policy, Setting, World};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use scalable_core::ids::{Micros, SECOND};
use scalable_core::planner::{
    Blocked, Group, Obstacle, Parameters, Phase, Planner, Pool, PoolEvent, PoolPlan, Running, ScalePlan, Snapshot, Worker,
    WorkerKey,
};

const NOW: Micros = 10_000 * SECOND;

prop_compose! {
    fn group()(
        slots in 0..9_u32, queued in 0..60_u32, soon in 0..9_u32, soon_in in 0..200_u64,
        measured in prop::option::of(1..2000_u64), expected in prop::option::of(1..2000_u64),
    ) -> Group {
        let micros = |seconds: Option<u64>| seconds.map(|seconds| seconds * SECOND);
        let queued = queued.saturating_sub(20);
        Group { slots, queued, soon, soon_in: soon_in * SECOND, measured: micros(measured), expected: micros(expected) }
    }
}

fn obstacle() -> impl Strategy<Value = Obstacle> {
    prop_oneof![4 => Just(Obstacle::Unschedulable), 1 => Just(Obstacle::Image), 1 => Just(Obstacle::Config)]
}

fn phase() -> impl Strategy<Value = Phase> {
    let ago = |seconds: u64| NOW - seconds * SECOND;
    let blocked = prop::option::weighted(0.3, (obstacle(), 0..600_u64));
    let running = prop::collection::vec((0..5_u32, 0..3000_u64), 0..5);
    prop_oneof![
        2 => blocked.prop_map(move |blocked| Phase::Starting { blocked: blocked.map(|(by, since)| Blocked { by, since: ago(since) }) }),
        3 => (running, 0..200_u64).prop_map(move |(running, only_bytes)| Phase::Ready {
            registered_at: ago(3000),
            idle_since: None,
            running: running.into_iter().map(|(group, since)| Running { group, started_at: ago(since) }).collect(),
            only_bytes,
        }),
        3 => (0..200_u64, 0..200_u64).prop_map(move |(since, only_bytes)| Phase::Ready {
            registered_at: ago(3000), idle_since: Some(ago(since)), running: vec![], only_bytes,
        }),
        1 => Just(Phase::Draining),
    ]
}

prop_compose! {
    fn pool()(
        minimum in 0..6_u32, maximum in 0..30_u32, minimum_at_once in any::<bool>(), room_coming in any::<bool>(),
        groups in prop::collection::vec(group(), 0..4),
        workers in prop::collection::vec((phase(), 0..600_u64), 0..25),
        object_bytes_per_worker in prop::option::weighted(0.3, 1..1000_u64),
    ) -> Pool {
        let worker = |(key, (phase, since)): (usize, (Phase, u64))| {
            Worker { key: WorkerKey(key as u64), asked_at: NOW - since * SECOND, phase }
        };
        Pool {
            name: String::new(), minimum, maximum, minimum_at_once, parameters: Parameters::DEFAULT, groups,
            workers: workers.into_iter().enumerate().map(worker).collect(), room_coming, object_bytes_per_worker,
        }
    }
}

prop_compose! {
    fn snapshot()(pools in prop::collection::vec(pool(), 1..4), max_total in prop::option::of(0..50_u32)) -> Snapshot {
        let named = |(at, pool): (usize, Pool)| Pool { name: format!("pool-{at}"), ..pool };
        Snapshot { pools: pools.into_iter().enumerate().map(named).collect(), max_total }
    }
}

fn find(pool: &Pool, key: WorkerKey) -> &Worker {
    pool.workers.iter().find(|worker| worker.key == key).unwrap()
}

fn is_draining(worker: &Worker) -> bool {
    matches!(worker.phase, Phase::Draining)
}

fn is_idle(worker: &Worker) -> bool {
    matches!(worker.phase, Phase::Ready { idle_since: Some(_), .. })
}

fn is_busy(worker: &Worker) -> bool {
    matches!(worker.phase, Phase::Ready { idle_since: None, .. })
}

fn staying(pool: &Pool) -> usize {
    pool.workers.iter().filter(|worker| !is_draining(worker)).count()
}

/// The snapshot once a plan is carried out.
fn applied(snapshot: &Snapshot, plan: &ScalePlan) -> Snapshot {
    let mut after = snapshot.clone();
    for (pool, plan) in after.pools.iter_mut().zip(&plan.pools) {
        pool.workers.retain(|worker| !plan.cancel.contains(&worker.key));
        for worker in &mut pool.workers {
            if plan.drain.iter().any(|drain| drain.worker == worker.key) || plan.give_way.contains(&worker.key) {
                worker.phase = Phase::Draining;
            }
        }
        let made =
            |number| Worker { key: WorkerKey(1000 + u64::from(number)), asked_at: NOW, phase: Phase::Starting { blocked: None } };
        pool.workers.extend((0..plan.create).map(made));
    }
    after
}

fn check_bounds(before: &Snapshot, plan: &ScalePlan) {
    let after = applied(before, plan);
    let count = |snapshot: &Snapshot| snapshot.pools.iter().map(|pool| pool.workers.len()).sum::<usize>();
    for ((was, is), plan) in before.pools.iter().zip(&after.pools).zip(&plan.pools) {
        let (low, high) = (was.minimum.min(was.maximum) as usize, was.maximum as usize);
        assert!(is.workers.len() <= high.max(was.workers.len()), "{} workers, maximum {high}", is.workers.len());
        assert!(plan.create == 0 || is.workers.len() <= high);
        // What another pool has a claim to may take it below its minimum only where all minimums together are above the limit.
        assert!(before.max_total.is_some() || staying(is) >= low.min(staying(was)), "{} stay, minimum {low}", staying(is));
    }
    if let Some(total) = before.max_total {
        assert!(count(&after) <= (total as usize).max(count(before)), "{} workers of {total}", count(&after));
        assert!(plan.pools.iter().all(|plan| plan.create == 0) || count(&after) <= total as usize);
        let lows: u32 = before.pools.iter().map(|pool| pool.minimum.min(pool.maximum)).sum();
        for (was, is) in before.pools.iter().zip(&after.pools) {
            let low = was.minimum.min(was.maximum) as usize;
            assert!(lows > total || staying(is) >= low.min(staying(was)), "{} stay, minimum {low}", staying(is));
        }
    }
}

fn check_victims(snapshot: &Snapshot, plan: &ScalePlan) {
    for (pool, plan) in snapshot.pools.iter().zip(&plan.pools) {
        for drain in &plan.drain {
            let worker = find(pool, drain.worker);
            assert!(is_idle(worker), "{worker:?} is to be drained");
            let holds = matches!(worker.phase, Phase::Ready { only_bytes, .. } if only_bytes > 0);
            assert_eq!(drain.move_first, holds);
        }
        assert!(plan.cancel.iter().all(|key| matches!(find(pool, *key).phase, Phase::Starting { .. })));
        assert!(plan.give_way.iter().all(|key| is_busy(find(pool, *key))));
        assert!(plan.give_way.is_empty() || snapshot.max_total.is_some());
        assert!(!plan.decision.reason.is_empty());
    }
}

fn without_figures(plan: &PoolPlan) -> (u32, Vec<WorkerKey>, Vec<WorkerKey>, u32) {
    let drain = plan.drain.iter().map(|drain| drain.worker).collect();
    (plan.create, plan.cancel.clone(), drain, plan.decision.figures.want)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_and_no_busy_worker_is_removed(snapshot in snapshot()) {
        let plan = Planner::default().plan(NOW, &snapshot);
        check_bounds(&snapshot, &plan);
        check_victims(&snapshot, &plan);
        prop_assert!(plan.again_at.is_none_or(|at| at > NOW));
    }

    #[test]
    fn planning_again_once_the_plan_is_carried_out_changes_next_to_nothing(snapshot in snapshot()) {
        let mut planner = Planner::default();
        let plan = planner.plan(NOW, &snapshot);
        let again = planner.plan(NOW, &applied(&snapshot, &plan));
        // Another pool may take at once what those given up leave of the limit over all pools.
        let left = snapshot.max_total.is_some() && plan.pools.iter().any(|pool| !pool.cancel.is_empty());
        // Tasks that do not divide a worker evenly leave gaps in the new ones that nobody could know before: one more at most.
        let settled = |pool: &PoolPlan| {
            let one_more = pool.create == 1 && pool.cancel.is_empty() && pool.drain.is_empty() && pool.give_way.is_empty();
            one_more || !pool.decision.acts()
        };
        prop_assert!(left || again.pools.iter().all(settled), "{:?} after {:?}", again.pools, plan.pools);
    }

    #[test]
    fn one_more_task_never_lowers_what_is_wanted(snapshot in snapshot(), pick in any::<prop::sample::Index>(), more in 1..100_u32) {
        let mut with_more = snapshot.clone();
        let pool = pick.index(snapshot.pools.len());
        prop_assume!(!with_more.pools[pool].groups.is_empty());
        with_more.pools[pool].groups[0].queued += more;
        let want = |snapshot: &Snapshot| Planner::default().plan(NOW, snapshot).pools[pool].decision.figures.want;
        prop_assert!(want(&with_more) >= want(&snapshot));
    }

    #[test]
    fn the_same_input_gives_the_same_plan_and_time_does_not_go_back(snapshot in snapshot(), back in 0..NOW) {
        let (mut one, mut other) = (Planner::default(), Planner::default());
        prop_assert_eq!(one.plan(NOW, &snapshot), other.plan(NOW, &snapshot));
        prop_assert_eq!(one.plan(NOW, &snapshot), other.plan(back, &snapshot));
    }

    #[test]
    fn neither_the_order_of_workers_nor_the_scale_of_time_matters(snapshot in snapshot()) {
        let plans = Planner::default().plan(NOW, &snapshot);
        let mut turned = snapshot.clone();
        turned.pools.iter_mut().for_each(|pool| pool.workers.reverse());
        let scaled = Snapshot { pools: snapshot.pools.iter().map(|pool| ten_times(pool.clone())).collect(), ..snapshot.clone() };
        for other in [Planner::default().plan(NOW, &turned), Planner::default().plan(NOW * 10, &scaled)] {
            let key = |plan: &ScalePlan| plan.pools.iter().map(without_figures).collect::<Vec<_>>();
            prop_assert_eq!(key(&plans), key(&other));
        }
    }
}

fn ten_times(mut pool: Pool) -> Pool {
    let parameters = &mut pool.parameters;
    for duration in [
        &mut parameters.target_duration,
        &mut parameters.expected_duration,
        &mut parameters.expected_start,
        &mut parameters.scale_down_delay,
        &mut parameters.idle_timeout,
        &mut parameters.scale_up_interval,
        &mut parameters.unschedulable_grace,
    ] {
        *duration *= 10;
    }
    for group in &mut pool.groups {
        group.soon_in *= 10;
        group.measured = group.measured.map(|duration| duration * 10);
        group.expected = group.expected.map(|duration| duration * 10);
    }
    for worker in &mut pool.workers {
        worker.asked_at *= 10;
        match &mut worker.phase {
            Phase::Starting { blocked } => blocked.iter_mut().for_each(|blocked| blocked.since *= 10),
            Phase::Ready { registered_at, idle_since, running, .. } => {
                *registered_at *= 10;
                idle_since.iter_mut().for_each(|since| *since *= 10);
                running.iter_mut().for_each(|attempt| attempt.started_at *= 10);
            }
            Phase::Draining => {}
        }
    }
    pool
}

/// Tasks that arrive in even steps and last equally long, or at random around these figures, so that on average `slots` of them
/// execute, for `seconds`.
fn load(slots: u64, lasts: u64, seconds: u64, start: u64, random: Option<u64>) -> Listing {
    let mut state = random;
    let mut around = |mean: u64| match &mut state {
        // The high bits of a linear congruential generator are random enough here.
        Some(state) => {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            mean / 4 + (((*state >> 33) * (mean * 3 / 2)) >> 31)
        }
        None => mean,
    };
    let mut listing = Listing { classes: vec!["a".to_owned()], starts: vec![start, start * 3 / 2], ..Listing::default() };
    let mut arrives = 0;
    while arrives < seconds * 1000 {
        listing.tasks.push(Task { arrives, lasts: around(lasts), class: 0 });
        arrives += around(lasts / slots).max(1);
    }
    listing
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn constant_load_makes_no_oscillation(
        slots in 1..60_u64, lasts in 300..300_000_u64, start in 500..150_000_u64, least_loaded in any::<bool>(), minimum in 0..4_u32,
        random in prop::option::of(any::<u64>()),
    ) {
        let hours = 2;
        let placement = if least_loaded { Placement::LeastLoaded } else { Placement::Oldest };
        let setting = Setting { placement, minimum, ..Setting::reference(usize::MAX) };
        let outcome = World::new(&load(slots, lasts, hours * 3600, start, random), setting).run(&mut Planned::new());
        prop_assert_eq!(outcome.killed_tasks, 0);
        // What was created is not removed within the delay of 60 s; where nothing changes there is no reason to turn at all.
        let turns_an_hour = if random.is_some() { 120 } else { 6 };
        prop_assert!(outcome.flips <= turns_an_hour * hours + 2, "{:?}", outcome);
        let tail = (outcome.last_event / 1000).saturating_sub(outcome.makespan);
        prop_assert!(tail <= 60 + 30 + 5, "it goes down to its minimum within the delay and the idle time: {:?}", outcome);
    }

    #[test]
    fn bounds_and_quota_hold_in_any_world(
        minimum in 0..5_u32, maximum in 1..40_u32, room in 1..40_usize, quota in 1..40_usize, seed in 0..5_usize, scenario in 0..8_usize,
        least_loaded in any::<bool>(),
    ) {
        let mut listing = scenarios().swap_remove(scenario).listings.swap_remove(seed);
        listing.tasks.truncate(100);
        let maximum = maximum.max(minimum);
        let room = room.max(minimum as usize);
        let placement = if least_loaded { Placement::LeastLoaded } else { Placement::Oldest };
        let setting = Setting { minimum, maximum, room, quota, placement, ..Setting::reference(room) };
        // The world checks the bounds in each second.
        let outcome = World::new(&listing, setting).run(&mut Planned::new());
        prop_assert_eq!(outcome.killed_tasks, 0);
    }
}

/// What the delay is for: the same load at random without it.
#[test]
fn the_delay_keeps_a_pool_from_turning_with_every_task() {
    let flips = |parameters| {
        let setting = Setting { parameters, ..Setting::reference(usize::MAX) };
        World::new(&load(5, 2_000, 7200, 2_000, Some(1)), setting).run(&mut Planned::new()).flips
    };
    let without = flips(Parameters { scale_down_delay: 0, idle_timeout: 0, ..Parameters::DEFAULT });
    let with = flips(Parameters::DEFAULT);
    assert!(with * 5 <= without, "{with} turns with it, {without} without");
}

#[test]
fn a_full_quota_is_asked_about_once_a_minute() {
    let listing = scenarios().pop().unwrap().listings.remove(0);
    let setting = Setting { quota: 5, ..Setting::reference(usize::MAX) };
    let outcome = World::new(&listing, setting).run(&mut Planned::new());
    assert_eq!(outcome.most, 5);
    assert!(outcome.makespan > 3600 * 4, "it takes hours");
    assert!(outcome.refused > 100 && outcome.refused < outcome.makespan / 60 + 20, "{outcome:?}");
}

/// Two pools under one planner: A has long tasks in waves, B has had one task.
#[test]
fn in_two_hundred_scaling_events_no_busy_worker_is_removed_and_b_stays_at_its_minimum() {
    let parameters = Parameters {
        target_duration: 5 * SECOND,
        expected_duration: 2 * SECOND,
        expected_start: 3 * SECOND,
        scale_down_delay: 4 * SECOND,
        idle_timeout: 2 * SECOND,
        scale_up_interval: SECOND,
        ..Parameters::DEFAULT
    };
    let mut a = Listing { classes: vec!["long".to_owned()], starts: vec![3000, 2000, 4000, 9000], ..Listing::default() };
    for wave in 0..120 {
        let task = |number: u64| Task { arrives: wave * 60_000, lasts: 20_000 + 1000 * ((number * 7 + wave) % 23), class: 0 };
        a.tasks.extend((0..20 + wave % 17).map(task));
    }
    let b = Listing { tasks: vec![Task { arrives: 0, lasts: 1000, class: 0 }], ..a.clone() };
    let setting = |minimum| Setting { minimum, maximum: 8, parameters, ..Setting::reference(usize::MAX) };
    let (mut a, mut b) = (World::new(&a, setting(1)), World::new(&b, setting(2)));
    let mut planner = Shared(Planner::default(), "a");
    let mut seconds_at_maximum = 0;
    while !(a.over() && b.over()) {
        let mut pools = Vec::new();
        for (name, world) in [("a", &mut a), ("b", &mut b)] {
            planner.1 = name;
            world.advance(&mut planner);
            pools.push(Pool { name: name.to_owned(), ..world.pool() });
        }
        let plan = planner.0.plan(a.now * 1000, &Snapshot { pools, max_total: Some(10) });
        for (world, plan) in [&mut a, &mut b].into_iter().zip(&plan.pools) {
            let actions = actions(world, plan);
            world.apply(&actions, &mut planner);
        }
        seconds_at_maximum += u64::from(a.workers.len() == 8);
        assert!(a.workers.len() + b.workers.len() <= 10);
        assert!(b.now < 300_000 || b.workers.len() == 2, "B has {}", b.workers.len());
    }
    assert!(a.outcome.events >= 200, "{:?}", a.outcome);
    assert!(seconds_at_maximum > 100, "the maximum was reached");
    assert_eq!((a.outcome.killed_tasks, b.outcome.killed_tasks), (0, 0));
}

/// Passes registrations on to one planner, for the pool of this name.
struct Shared(Planner, &'static str);

impl Policy for Shared {
    fn decide(&mut self, _: &World) -> Actions {
        unreachable!("the test plans for both worlds at once")
    }

    fn registered(&mut self, now: u64, asked: u64) {
        let event = PoolEvent::Started { asked_at: asked * 1000, took: (now - asked) * 1000 };
        self.0.observe(now * 1000, self.1, &event);
    }
}
