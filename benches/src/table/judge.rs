//! Whether a figure is good enough: by what the machine and the peers reached in the same run, never by an absolute figure
//! where there is another.

/// Which figures are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Throughput.
    More,
    /// Time, bytes.
    Less,
}

/// How a row is judged.
#[derive(Clone, Copy, Debug)]
pub enum Judge {
    /// Against this factor × the named limit: at least that of a throughput, at most that of a time.
    Limit(&'static str, f64),
    /// So many times as good as the best peer.
    BestPeer(f64),
    /// So many times as good as each of the named peers.
    Peers(&'static [(&'static str, f64)]),
    /// Against the figure itself.
    Absolute(f64),
    /// By nothing: it is there to be seen.
    Nothing,
}

/// A figure that was measured, by name.
pub type Named<'a> = &'a [(String, f64)];

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// None where nothing can be said.
    pub met: Option<bool>,
    /// What was asked, in the row's unit.
    pub asked: Option<f64>,
    /// Why nothing can be said, or by how much the figure fails.
    pub note: String,
}

impl Verdict {
    /// Nothing can be said, for this reason.
    pub fn open(note: impl Into<String>) -> Self {
        Verdict { met: None, asked: None, note: note.into() }
    }

    fn of(better: Better, ours: f64, asked: f64) -> Self {
        let (met, by) = match better {
            Better::More => (ours >= asked, asked / ours),
            Better::Less => (ours <= asked, ours / asked),
        };
        let note = if met { String::new() } else { format!("not reached by a factor of {by:.2}") };
        Verdict { met: Some(met), asked: Some(asked), note }
    }
}

fn find(figures: Named<'_>, name: &str) -> Option<f64> {
    figures.iter().find(|(of, _)| of == name).map(|(_, figure)| *figure)
}

impl Judge {
    /// Judges `ours`.
    pub fn judge(self, better: Better, ours: f64, limits: Named<'_>, peers: Named<'_>) -> Verdict {
        let against = |peer: f64, factor: f64| match better {
            Better::More => peer * factor,
            Better::Less => peer / factor,
        };
        match self {
            Judge::Absolute(asked) => Verdict::of(better, ours, asked),
            Judge::Nothing => Verdict::open("not judged"),
            Judge::Limit(name, factor) => match find(limits, name) {
                Some(limit) => Verdict::of(better, ours, limit * factor),
                None => Verdict::open(format!("not judged: {name} was not measured")),
            },
            Judge::BestPeer(factor) => {
                let best = match better {
                    Better::More => peers.iter().map(|(_, figure)| *figure).max_by(f64::total_cmp),
                    Better::Less => peers.iter().map(|(_, figure)| *figure).min_by(f64::total_cmp),
                };
                match best {
                    Some(best) => Verdict::of(better, ours, against(best, factor)),
                    None => Verdict::open("not judged: no peer was measured"),
                }
            }
            Judge::Peers(named) => {
                let each = named.iter().map(|(name, factor)| {
                    find(peers, name).map_or_else(
                        || Verdict::open(format!("not judged: {name} was not measured")),
                        |peer| Verdict::of(better, ours, against(peer, *factor)),
                    )
                });
                // A failure says most, then what is missing, then the narrowest success.
                let rank = |verdict: &Verdict| match verdict.met {
                    Some(false) => (0, margin(better, ours, verdict)),
                    None => (1, 0.0),
                    Some(true) => (2, margin(better, ours, verdict)),
                };
                each.min_by(|a, b| {
                    let (a, b) = (rank(a), rank(b));
                    a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
                })
                .unwrap_or_else(|| Verdict::open("not judged: no peer is named"))
            }
        }
    }
}

/// How far `ours` is from what was asked: 1 is exactly there, more is better.
fn margin(better: Better, ours: f64, verdict: &Verdict) -> f64 {
    let asked = verdict.asked.unwrap_or(ours);
    match better {
        Better::More => ours / asked,
        Better::Less => asked / ours,
    }
}

/// A relay over gRPC that reaches less than half of the same relay over plain TCP is no limit to be held against: says so.
pub fn void(better: Better, relay: f64, plain: f64) -> Option<String> {
    let of_plain = match better {
        Better::More => relay / plain,
        Better::Less => plain / relay,
    };
    (of_plain < 0.5).then(|| format!("void: the relay reaches only {of_plain:.2} of a plain TCP relay of the same frames"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(figures: &[(&str, f64)]) -> Vec<(String, f64)> {
        figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure)).collect()
    }

    fn check(judge: Judge, better: Better, ours: f64, expected: (Option<bool>, Option<f64>)) -> String {
        let (limits, peers) = (named(&[("relay", 30.0)]), named(&[("dask", 2.0), ("ray", 4.0)]));
        let verdict = judge.judge(better, ours, &limits, &peers);
        assert_eq!((verdict.met, verdict.asked), expected, "{judge:?} {better:?} {ours}");
        verdict.note
    }

    #[test]
    fn against_a_limit() {
        check(Judge::Limit("relay", 0.5), Better::More, 15.0, (Some(true), Some(15.0)));
        let note = check(Judge::Limit("relay", 0.5), Better::More, 10.0, (Some(false), Some(15.0)));
        assert_eq!(note, "not reached by a factor of 1.50");
        check(Judge::Limit("relay", 1.5), Better::Less, 45.0, (Some(true), Some(45.0)));
        check(Judge::Limit("relay", 1.5), Better::Less, 45.1, (Some(false), Some(45.0)));
        let note = check(Judge::Limit("echo", 1.5), Better::Less, 45.0, (None, None));
        assert_eq!(note, "not judged: echo was not measured");
    }

    #[test]
    fn against_the_best_peer() {
        check(Judge::BestPeer(100.0), Better::More, 400.0, (Some(true), Some(400.0)));
        check(Judge::BestPeer(100.0), Better::More, 399.0, (Some(false), Some(400.0)));
        check(Judge::BestPeer(100.0), Better::Less, 0.02, (Some(true), Some(0.02)));
        check(Judge::BestPeer(100.0), Better::Less, 0.03, (Some(false), Some(0.02)));
        let verdict = Judge::BestPeer(2.0).judge(Better::More, 1.0, &[], &[]);
        assert_eq!(verdict, Verdict::open("not judged: no peer was measured"));
    }

    #[test]
    fn against_each_of_several_peers() {
        // Asked: at most 0.2 by dask, at most 0.4 by ray.
        const BOTH: Judge = Judge::Peers(&[("dask", 10.0), ("ray", 10.0)]);
        check(BOTH, Better::Less, 0.1, (Some(true), Some(0.2)));
        check(BOTH, Better::Less, 0.3, (Some(false), Some(0.2)));
        const MISSING: Judge = Judge::Peers(&[("dask", 10.0), ("hq", 10.0)]);
        check(MISSING, Better::Less, 0.3, (Some(false), Some(0.2)));
        let note = check(MISSING, Better::Less, 0.1, (None, None));
        assert_eq!(note, "not judged: hq was not measured");
    }

    #[test]
    fn against_itself() {
        check(Judge::Absolute(1.5), Better::Less, 1.4, (Some(true), Some(1.5)));
        check(Judge::Absolute(1.5), Better::Less, 1.6, (Some(false), Some(1.5)));
    }

    #[test]
    fn a_slow_relay_makes_a_row_void() {
        assert_eq!(void(Better::More, 5.0, 10.0), None);
        assert_eq!(void(Better::Less, 20.0, 10.0), None);
        let note = void(Better::More, 4.0, 10.0);
        assert_eq!(note.as_deref(), Some("void: the relay reaches only 0.40 of a plain TCP relay of the same frames"));
        assert!(void(Better::Less, 21.0, 10.0).is_some());
    }
}
