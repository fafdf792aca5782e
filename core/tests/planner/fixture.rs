//! Reads `fixtures/scenarios.txt`, which `tests/autoscale/export.py` made; the format is described there.

/// A task of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// In milliseconds.
    pub arrives: u64,
    /// In milliseconds.
    pub lasts: u64,
    /// Position in [`Listing::classes`].
    pub class: usize,
}

/// One seed of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    pub classes: Vec<String>,
    pub tasks: Vec<Task>,
    /// How long the first, second, ... worker takes to start, in milliseconds.
    pub starts: Vec<u64>,
    /// What the reference came to: makespan and worker-seconds.
    pub reference: (u64, u64),
}

/// A scenario.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    pub name: String,
    /// Workers the cluster has room for.
    pub room: usize,
    pub listings: Vec<Listing>,
}

pub fn scenarios() -> Vec<Scenario> {
    let mut starts: Vec<Vec<u64>> = Vec::new();
    let mut scenarios: Vec<Scenario> = Vec::new();
    for line in include_str!("fixtures/scenarios.txt").lines().filter(|line| !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = || rest.parse().unwrap();
        match word {
            "starts" => starts.push(rest.split(' ').skip(1).map(|ms| ms.parse().unwrap()).collect()),
            "scenario" => scenarios.push(Scenario { name: rest.to_owned(), room: usize::MAX, listings: Vec::new() }),
            "room" => scenarios.last_mut().unwrap().room = number(),
            "seed" => {
                let seed = number();
                let listing = Listing { starts: starts[seed - 1].clone(), ..Listing::default() };
                scenarios.last_mut().unwrap().listings.push(listing);
            }
            "class" => scenarios.last_mut().unwrap().listings.last_mut().unwrap().classes.push(rest.to_owned()),
            "wwb" => {
                let figures: Vec<u64> = rest.split(' ').map(|figure| figure.parse().unwrap()).collect();
                assert_eq!(figures[2], 0, "the reference killed no task");
                scenarios.last_mut().unwrap().listings.last_mut().unwrap().reference = (figures[0], figures[1]);
            }
            _ => tasks(scenarios.last_mut().unwrap().listings.last_mut().unwrap(), line),
        }
    }
    scenarios
}

fn tasks(listing: &mut Listing, line: &str) {
    let class = listing.classes.len() - 1;
    for token in line.split(' ') {
        let (count, rest) = token.split_once('*').unwrap_or(("1", token));
        let (gap, lasts) = rest.split_once(':').unwrap_or(("0", rest));
        let before = listing.tasks.last().map_or(0, |task| task.arrives);
        let task = Task { arrives: before + gap.parse::<u64>().unwrap(), lasts: lasts.parse().unwrap(), class };
        listing.tasks.extend(std::iter::repeat_n(task, count.parse().unwrap()));
    }
}
