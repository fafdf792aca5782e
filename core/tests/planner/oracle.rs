//! A greedy oracle: it knows how long every task lasts, when it arrives and how long every worker takes to start.

use crate::world::{Actions, Policy, SLOTS, World};
use std::collections::BTreeSet;

/// Creates a worker whenever a task, in the order of the queue, would otherwise start later than on that worker; lets one go in the
/// second in which it is idle and nothing that arrives within a worker's start will need it.
pub struct Oracle;

impl Policy for Oracle {
    fn decide(&mut self, world: &World) -> Actions {
        let (now, ahead) = (world.now, world.next_start());
        let most = (world.setting.maximum as usize).min(world.setting.room);
        let idle = |id: &u64| world.workers[id].ready && world.workers[id].executing.is_empty();
        if world.workers.len() >= most && !world.workers.keys().any(idle) {
            return Actions::default();
        }
        // Slots by the time at which they are free; those of idle workers have been free longest, so that they are taken last.
        let mut free: BTreeSet<(u64, u64, usize)> = BTreeSet::new();
        for (id, worker) in &world.workers {
            for slot in 0..SLOTS {
                let at = match worker.executing.get(slot) {
                    Some(executing) => executing.ends().max(now),
                    None if idle(id) => 0,
                    None if worker.ready => now,
                    None => worker.ready_at,
                };
                free.insert((at, *id, slot));
            }
        }
        let mut needed: BTreeSet<u64> = BTreeSet::new();
        let mut create = 0;
        let due = world.arrivals.iter().take_while(|task| task.arrives <= now + ahead);
        for task in world.queue.iter().chain(due) {
            let from = task.arrives.max(now);
            let on_new = from.max(now + ahead);
            let best = free.range(..=(from, u64::MAX, 0)).next_back().or(free.first()).copied();
            let (at, id, slot) = match best {
                Some(slot) if slot.0 <= on_new => slot,
                _ if world.workers.len() + create < most => {
                    create += 1;
                    let id = u64::MAX - create as u64;
                    free.extend((0..SLOTS).map(|slot| (now + ahead, id, slot)));
                    (now + ahead, id, 0)
                }
                _ => break,
            };
            free.remove(&(at, id, slot));
            free.insert((at.max(from) + task.lasts, id, slot));
            needed.insert(id);
        }
        let remove = world.workers.keys().filter(|id| create == 0 && idle(id) && !needed.contains(id));
        Actions { create: create as u32, remove: remove.copied().collect() }
    }
}
