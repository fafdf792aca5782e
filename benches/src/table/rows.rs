//! The rows as data: what is done, in which unit, what is to be reached and by what it is judged.

use anyhow::Result;

use super::judge::{Better, Judge};
use super::measure::{Measure, Scale};
use crate::limits::rows as limits;
use crate::ours;

/// Starts a measurement.
pub type Start = fn(&Scale) -> Result<Measure>;

/// One figure: a row of the table, an object of the JSON.
#[derive(Debug)]
pub struct Figure {
    /// As in the README.
    pub id: &'static str,
    /// Unit of every value in the row.
    pub unit: &'static str,
    /// Which figures are better.
    pub better: Better,
    /// What is to be reached, and by what that is decided.
    pub goal: &'static str,
    /// The decision.
    pub judge: Judge,
}

/// A piece of work that is measured at once; its figures are rows.
#[derive(Debug)]
pub struct Work {
    /// Name of the work, and of the row in the peers' scripts.
    pub name: &'static str,
    /// What is done.
    pub what: &'static str,
    /// Its rows.
    pub figures: &'static [Figure],
    /// Ours.
    pub ours: Option<Start>,
    /// What the machine can do, by name. A limit with one value holds for every figure.
    pub limits: &'static [(&'static str, Start)],
    /// The relay over gRPC and the plain one: without half of that, the rows are void.
    pub relay: Option<(&'static str, &'static str)>,
    /// Peers that can do it.
    pub peers: &'static [&'static str],
}

impl Work {
    /// How much of the time that is left it may take, measured in what each of the works that are left would get.
    pub fn shares(&self) -> u32 {
        // Every run of Snakemake begins with seconds of its own.
        if self.name == "touch" { 5 } else { 2 }
    }

    /// Whether a peer decides anything: not where others are named.
    pub fn is_decided_by(&self, peer: &str) -> bool {
        self.figures.iter().any(|figure| match figure.judge {
            Judge::Peers(named) => named.iter().any(|(name, _)| *name == peer),
            _ => true,
        })
    }
}

/// The work of that name.
pub fn of_name(name: &str) -> Option<&'static Work> {
    WORKS.iter().find(|work| work.name == name)
}

const RELAY: Option<(&str, &str)> = Some(("relay", "TCP relay"));

use Better::{Less, More};

const NOOP_LIMITS: &[(&str, Start)] =
    &[("relay", limits::relay_stream), ("TCP relay", limits::tcp_stream), ("echo", limits::echo_stream)];
const RTT_LIMITS: &[(&str, Start)] =
    &[("relay", limits::relay_round_trips), ("TCP relay", limits::tcp_round_trips), ("echo", limits::echo_round_trips)];

/// All of it, in the order of the table.
pub const WORKS: &[Work] = &[
    Work {
        name: "noop_array",
        what: "an array of 1,000,000 no-ops, every result gathered by the client; isolation thread",
        figures: &[Figure {
            id: "noop_array",
            unit: "tasks/s",
            better: More,
            goal: "≥ 5 M/s; judged by ≥ 1/3 × the relay",
            judge: Judge::Limit("relay", 1.0 / 3.0),
        }],
        ours: Some(ours::functions::noop_array),
        limits: NOOP_LIMITS,
        relay: RELAY,
        peers: &["dask", "ray", "parsl", "futures"],
    },
    Work {
        name: "noop_array.process",
        what: "the same in lane processes",
        figures: &[Figure {
            id: "noop_array.process",
            unit: "tasks/s",
            better: More,
            goal: "≥ 2 M/s; judged by ≥ 1/8 × the relay",
            judge: Judge::Limit("relay", 1.0 / 8.0),
        }],
        ours: Some(ours::functions::noop_array_process),
        limits: NOOP_LIMITS,
        relay: RELAY,
        peers: &[],
    },
    Work {
        name: "noop_array.tls",
        what: "the array of noop_array, between processes that know each other by certificates, over TLS",
        figures: &[Figure { id: "noop_array.tls", unit: "tasks/s", better: More, goal: "none", judge: Judge::Nothing }],
        ours: Some(ours::functions::noop_array_tls),
        limits: &[],
        relay: None,
        peers: &[],
    },
    Work {
        name: "noop_dag",
        what: "1,000,000 no-ops, each with its own argument, after one to three random earlier ones; isolation thread",
        figures: &[Figure {
            id: "noop_dag",
            unit: "tasks/s",
            better: More,
            goal: "≥ 1 M/s; judged by ≥ 400 × the best peer",
            judge: Judge::BestPeer(400.0),
        }],
        ours: Some(ours::functions::noop_dag),
        limits: &[],
        relay: None,
        peers: &["dask", "ray", "parsl"],
    },
    Work {
        name: "rtt",
        what: "submit to result, one at a time; isolation thread",
        figures: &[
            Figure {
                id: "rtt",
                unit: "µs",
                better: Less,
                goal: "p50 ≤ 120 µs; judged by ≤ 1.5 × the relay",
                judge: Judge::Limit("relay", 1.5),
            },
            Figure {
                id: "rtt.p99",
                unit: "µs",
                better: Less,
                goal: "p99 ≤ 250 µs; judged by ≤ 2.5 × the relay",
                judge: Judge::Limit("relay", 2.5),
            },
        ],
        ours: Some(ours::functions::rtt),
        limits: RTT_LIMITS,
        relay: RELAY,
        peers: &["dask", "ray", "parsl", "futures"],
    },
    Work {
        name: "rtt.process",
        what: "the same in lane processes",
        figures: &[
            Figure {
                id: "rtt.process",
                unit: "µs",
                better: Less,
                goal: "p50 ≤ 160 µs; judged by ≤ 1.5 × the relay",
                judge: Judge::Limit("relay", 1.5),
            },
            Figure {
                id: "rtt.process.p99",
                unit: "µs",
                better: Less,
                goal: "p99 ≤ 350 µs; judged by ≤ 2.5 × the relay",
                judge: Judge::Limit("relay", 2.5),
            },
        ],
        ours: Some(ours::functions::rtt_process),
        limits: RTT_LIMITS,
        relay: RELAY,
        peers: &[],
    },
    Work {
        name: "rtt.tls",
        what: "submit to result as in rtt, over TLS",
        figures: &[
            Figure { id: "rtt.tls", unit: "µs", better: Less, goal: "none", judge: Judge::Nothing },
            Figure { id: "rtt.tls.p99", unit: "µs", better: Less, goal: "none", judge: Judge::Nothing },
        ],
        ours: Some(ours::functions::rtt_tls),
        limits: &[],
        relay: None,
        peers: &[],
    },
    Work {
        name: "rtt.background",
        what: "p99 of single tasks of higher priority while 1,000,000 no-ops run",
        figures: &[Figure { id: "rtt.background", unit: "µs", better: Less, goal: "≤ 5 ms", judge: Judge::Absolute(5000.0) }],
        ours: Some(ours::functions::rtt_background),
        limits: &[],
        relay: None,
        peers: &[],
    },
    Work {
        name: "chain",
        what: "a chain of 1,000 dependent tasks",
        figures: &[Figure {
            id: "chain",
            unit: "µs/task",
            better: Less,
            goal: "≤ 120 µs; judged by ≤ 1.5 × one hop of the relay and back",
            judge: Judge::Limit("relay", 1.5),
        }],
        ours: Some(ours::functions::chain),
        limits: &[("relay", limits::relay_chain), ("TCP relay", limits::tcp_chain)],
        relay: RELAY,
        peers: &["dask", "ray", "parsl"],
    },
    Work {
        name: "tree",
        what: "a tree of 32,767 tasks that adds up its leaves",
        figures: &[Figure {
            id: "tree",
            unit: "s",
            better: Less,
            goal: "≤ 0.15 s; judged by ≥ 100 × the best peer",
            judge: Judge::BestPeer(100.0),
        }],
        ours: Some(ours::functions::tree),
        limits: &[],
        relay: None,
        peers: &["dask", "ray", "parsl"],
    },
    Work {
        name: "results.net",
        what: "results of 1 MiB consumed one to one, one worker of two slots, short cuts off",
        figures: &[Figure {
            id: "results.net",
            unit: "MiB/s",
            better: More,
            goal: "≥ 3,000 MiB/s; judged by ≥ 0.7 × a loopback TCP copy",
            judge: Judge::Limit("TCP copy", 0.7),
        }],
        ours: Some(ours::data::results_net),
        limits: &[("TCP copy", limits::tcp_copy)],
        relay: None,
        peers: &["dask"],
    },
    Work {
        name: "results.net.tls",
        what: "the same over TLS",
        figures: &[Figure { id: "results.net.tls", unit: "MiB/s", better: More, goal: "none", judge: Judge::Nothing }],
        ours: Some(ours::data::results_net_tls),
        limits: &[],
        relay: None,
        peers: &[],
    },
    Work {
        name: "results.net.four",
        what: "the same with four workers",
        figures: &[Figure {
            id: "results.net.four",
            unit: "MiB/s",
            better: More,
            goal: "≥ 2,500 MiB/s; judged by ≥ 0.6 × a loopback TCP copy",
            judge: Judge::Limit("TCP copy", 0.6),
        }],
        ours: Some(ours::data::results_net_four),
        limits: &[("TCP copy", limits::tcp_copy)],
        relay: None,
        peers: &["dask"],
    },
    Work {
        name: "results.host",
        what: "results of 1 MiB consumed one to one, one worker of two slots, short cuts on",
        figures: &[Figure {
            id: "results.host",
            unit: "MiB/s",
            better: More,
            goal: "judged by ≥ 0.3 × memcpy",
            judge: Judge::Limit("memcpy", 0.3),
        }],
        ours: Some(ours::data::results_host),
        limits: &[("memcpy", limits::memcpy)],
        relay: None,
        peers: &["ray"],
    },
    Work {
        name: "results.host.four",
        what: "the same with four workers",
        figures: &[Figure {
            id: "results.host.four",
            unit: "MiB/s",
            better: More,
            goal: "judged by ≥ 0.3 × memcpy",
            judge: Judge::Limit("memcpy", 0.3),
        }],
        ours: Some(ours::data::results_host_four),
        limits: &[("memcpy", limits::memcpy)],
        relay: None,
        peers: &["ray"],
    },
    Work {
        name: "exchange.net",
        what: "each task takes two blocks of 1 MiB from random workers of four, short cuts off",
        figures: &[Figure {
            id: "exchange.net",
            unit: "MiB/s",
            better: More,
            goal: "≥ 3,000 MiB/s; judged by ≥ 0.7 × a loopback TCP copy",
            judge: Judge::Limit("TCP copy", 0.7),
        }],
        ours: Some(ours::data::exchange_net),
        limits: &[("TCP copy", limits::tcp_copy)],
        relay: None,
        peers: &["dask"],
    },
    Work {
        name: "exchange.host",
        what: "each task takes two blocks of 1 MiB from random workers of four, short cuts on",
        figures: &[Figure {
            id: "exchange.host",
            unit: "MiB/s",
            better: More,
            goal: "judged by ≥ 0.3 × memcpy",
            judge: Judge::Limit("memcpy", 0.3),
        }],
        ours: Some(ours::data::exchange_host),
        limits: &[("memcpy", limits::memcpy)],
        relay: None,
        peers: &["ray"],
    },
    Work {
        name: "command",
        what: "/bin/true commands, two slots",
        figures: &[Figure {
            id: "command",
            unit: "tasks/s",
            better: More,
            goal: "≥ 2,900/s; judged by ≥ 0.8 × two parallel posix_spawn loops",
            judge: Judge::Limit("posix_spawn loops", 0.8),
        }],
        ours: Some(ours::commands::command),
        limits: &[("posix_spawn loops", limits::spawn_loops)],
        relay: None,
        peers: &["dask", "ray", "parsl", "hyperqueue", "futures"],
    },
    Work {
        name: "touch",
        what: "2,000 files from 2,000 commands: a manifest's foreach against the same Snakefile",
        figures: &[Figure {
            id: "touch",
            unit: "s",
            better: Less,
            goal: "≤ 1.5 s; judged by ≥ 15 × Snakemake --scheduler greedy",
            judge: Judge::Peers(&[("snakemake --scheduler greedy", 15.0)]),
        }],
        ours: Some(ours::commands::touch),
        limits: &[],
        relay: None,
        peers: &["snakemake", "snakemake --scheduler greedy"],
    },
    Work {
        name: "scheduler_cpu",
        what: "CPU of the scheduler's process a task of the no-op array",
        figures: &[Figure {
            id: "scheduler_cpu",
            unit: "µs/task",
            better: Less,
            goal: "≤ 0.3 µs; judged by ≤ 1/10 of HyperQueue's and ≤ 1/100 of Dask's",
            judge: Judge::Peers(&[("hyperqueue", 10.0), ("dask", 100.0)]),
        }],
        ours: Some(ours::scheduler::cpu_array),
        limits: &[],
        relay: None,
        peers: &["hyperqueue", "dask"],
    },
    Work {
        name: "scheduler_cpu.dag",
        what: "CPU of the scheduler's process a task of the random graph",
        figures: &[Figure {
            id: "scheduler_cpu.dag",
            unit: "µs/task",
            better: Less,
            goal: "≤ 1 µs; judged by ≤ 1/10 of HyperQueue's and ≤ 1/100 of Dask's",
            judge: Judge::Peers(&[("hyperqueue", 10.0), ("dask", 100.0)]),
        }],
        ours: Some(ours::scheduler::cpu_dag),
        limits: &[],
        relay: None,
        peers: &["hyperqueue", "dask"],
    },
    Work {
        name: "scheduler_bytes",
        what: "resident bytes of the scheduler a pending task beyond its argument, an array of 1,000,000",
        figures: &[Figure {
            id: "scheduler_bytes",
            unit: "B/task",
            better: Less,
            goal: "≤ 16 + argument",
            judge: Judge::Absolute(16.0),
        }],
        ours: Some(ours::scheduler::bytes_array),
        limits: &[],
        relay: None,
        peers: &["hyperqueue", "dask"],
    },
    Work {
        name: "scheduler_bytes.distinct",
        what: "the same, 1,000,000 tasks of the random graph",
        figures: &[Figure {
            id: "scheduler_bytes.distinct",
            unit: "B/task",
            better: Less,
            goal: "≤ 160 + argument",
            judge: Judge::Absolute(160.0),
        }],
        ours: Some(ours::scheduler::bytes_distinct),
        limits: &[],
        relay: None,
        peers: &["hyperqueue", "dask"],
    },
    Work {
        name: "growth",
        what: "the scheduler machine's cost for a task of an array of 10,000,000 (quick: 2,000,000), against one of 10,000",
        figures: &[Figure { id: "growth", unit: "×", better: Less, goal: "within 1.5 ×", judge: Judge::Absolute(1.5) }],
        ours: Some(ours::growth::arrays),
        limits: &[],
        relay: None,
        peers: &[],
    },
    Work {
        name: "growth.distinct",
        what: "the same for tasks of a random graph, 10,000,000 (quick: 2,000,000) against 1,000,000",
        figures: &[Figure {
            id: "growth.distinct", unit: "×", better: Less, goal: "within 1.5 ×", judge: Judge::Absolute(1.5)
        }],
        ours: Some(ours::growth::distinct),
        limits: &[],
        relay: None,
        peers: &[],
    },
    Work {
        name: "growth.workers",
        what: "the same for 10,000 simulated workers against 2",
        figures: &[Figure { id: "growth.workers", unit: "×", better: Less, goal: "within 1.5 ×", judge: Judge::Absolute(1.5) }],
        ours: Some(ours::growth::workers),
        limits: &[],
        relay: None,
        peers: &[],
    },
    Work {
        name: "start",
        what: "a session with processes of its own and two workers, to the first result",
        figures: &[Figure {
            id: "start",
            unit: "ms",
            better: Less,
            goal: "≤ 300 ms; judged by ≤ 1/6 of Dask's",
            judge: Judge::Peers(&[("dask", 6.0)]),
        }],
        ours: Some(ours::commands::start),
        limits: &[],
        relay: None,
        peers: &["dask", "ray", "parsl"],
    },
    Work {
        name: "start.help",
        what: "scalable --help, from a shell",
        figures: &[Figure {
            id: "start.help",
            unit: "ms",
            better: Less,
            goal: "≤ 10 ms; judged by ≤ 3 × /bin/true from the same shell",
            judge: Judge::Limit("/bin/true", 3.0),
        }],
        ours: Some(ours::commands::help),
        limits: &[("/bin/true", limits::shell_true)],
        relay: None,
        peers: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_unique_and_every_limit_that_judges_is_measured() {
        let mut ids: Vec<_> = WORKS.iter().flat_map(|work| work.figures.iter().map(|figure| figure.id)).collect();
        let mut names: Vec<_> = WORKS.iter().map(|work| work.name).collect();
        let counts = (ids.len(), names.len());
        ids.sort_unstable();
        ids.dedup();
        names.sort_unstable();
        names.dedup();
        assert_eq!((ids.len(), names.len()), counts);
        for work in WORKS {
            let measured = |name| work.limits.iter().any(|(of, _)| *of == name);
            let judging = work.figures.iter().filter_map(|figure| match figure.judge {
                Judge::Limit(name, _) => Some(name),
                _ => None,
            });
            let relay = work.relay.iter().flat_map(|(relay, plain)| [*relay, *plain]);
            for name in judging.chain(relay) {
                assert!(measured(name), "{}: {name} is not measured", work.name);
            }
            for figure in work.figures {
                let Judge::Peers(named) = figure.judge else { continue };
                assert!(
                    named.iter().all(|(peer, _)| work.peers.contains(peer)),
                    "{}: a peer that judges is not asked",
                    figure.id
                );
            }
        }
    }
}
