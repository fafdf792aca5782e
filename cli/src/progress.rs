//! Progress of a run on stderr: a bar per group and a line per pool on a terminal, else a plain line when something changed, at
//! most every few seconds. What is drawn is computed by [`rows`] and [`plain_line`]; the rest puts it on the screen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use scalable_proto::v1;

use crate::ui::{Ui, bytes, harmless, one_line, span};

/// Groups with a bar of their own.
const GROUPS_SHOWN: usize = 12;
/// Pools with a line of their own.
const POOLS_SHOWN: usize = 6;
/// Characters of a group's name.
const NAME_CHARS: usize = 24;
/// Plain lines: at most one in this time, and sooner where a group has ended or a pool says something else.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
const PLAIN_EVERY_NEWS: Duration = Duration::from_secs(1);
/// Elements that must be over before a rest is estimated.
const ESTIMATE_FROM: u32 = 3;

/// A line of the display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A bar.
    Group { name: String, over: u64, length: u64, text: String },
    /// Words.
    Text(String),
}

/// Elements of a group that are over, however they ended.
pub fn over(group: &v1::GroupCounts) -> u32 {
    group.succeeded + group.failed + group.skipped + group.cancelled
}

fn is_over(group: &v1::GroupCounts) -> bool {
    !group.open && over(group) >= group.length
}

fn is_active(group: &v1::GroupCounts) -> bool {
    !is_over(group) && (over(group) > 0 || group.running + group.assigned + group.ready + group.backoff > 0)
}

/// What is shown for a run; `rest` is the estimated time to its end of each group that has one.
pub fn rows(progress: &v1::RunProgress, rest: &BTreeMap<String, f64>) -> Vec<Row> {
    let groups = &progress.groups;
    let shown: Vec<&v1::GroupCounts> = if groups.len() <= GROUPS_SHOWN {
        groups.iter().collect()
    } else {
        groups.iter().filter(|group| is_active(group)).take(GROUPS_SHOWN - 1).collect()
    };
    let mut rows: Vec<Row> = shown.iter().map(|group| group_row(group, rest.get(&group.group).copied())).collect();
    if groups.len() > shown.len() {
        let ended = groups.iter().filter(|group| is_over(group)).count();
        let active = groups.iter().filter(|group| is_active(group)).count();
        let waiting = groups.len() - ended - active;
        rows.push(Row::Text(format!("… of {} groups {ended} are over, {active} active, {waiting} waiting", groups.len())));
    }
    rows.extend(progress.pools.iter().take(POOLS_SHOWN).map(|pool| Row::Text(pool_line(pool))));
    if progress.pools.len() > POOLS_SHOWN {
        rows.push(Row::Text(format!("… and {} more pools", progress.pools.len() - POOLS_SHOWN)));
    }
    if !progress.note.is_empty() {
        rows.push(Row::Text(one_line(&progress.note, 200)));
    }
    rows
}

fn group_row(group: &v1::GroupCounts, rest: Option<f64>) -> Row {
    let of = if group.open { "?".to_owned() } else { group.length.to_string() };
    let mut text = format!("{}/{of}", over(group));
    let mut add = |sign: &str, count: u32| {
        if count > 0 {
            text.push_str(&format!(" {sign}{count}"));
        }
    };
    add("✓", group.succeeded);
    add("▶", group.running);
    add("✗", group.failed);
    add("↻", group.retried);
    add("skipped ", group.skipped);
    add("cancelled ", group.cancelled);
    add("backing off ", group.backoff);
    if let Some(rest) = rest {
        text.push_str(&format!("  about {} left", span(rest)));
    }
    Row::Group { name: one_line(&group.group, NAME_CHARS), over: over(group).into(), length: group.length.into(), text }
}

/// A pool in one line: `pool local: 2 workers, 2 of 2 cpus busy, 1 GiB of 8 GiB`.
pub fn pool_line(pool: &v1::PoolCounts) -> String {
    let cpus = |milli: u64| {
        let text = format!("{:.2}", milli as f64 / 1000.0);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let mut line =
        format!("pool {}: {} worker{}", one_line(&pool.pool, NAME_CHARS), pool.workers, if pool.workers == 1 { "" } else { "s" });
    for (count, word) in
        [(pool.starting, "starting"), (pool.suspect, "suspect"), (pool.draining, "draining"), (pool.lost, "lost so far")]
    {
        if count > 0 {
            line.push_str(&format!(", {count} {word}"));
        }
    }
    if pool.milli_cpus > 0 && pool.milli_cpus != u64::MAX {
        line.push_str(&format!(", {} of {} cpus taken", cpus(pool.milli_cpus_used), cpus(pool.milli_cpus)));
    }
    if pool.memory_bytes > 0 && pool.memory_bytes != u64::MAX && pool.memory_bytes_used > 0 {
        line.push_str(&format!(", {} of {}", bytes(pool.memory_bytes_used), bytes(pool.memory_bytes)));
    }
    if !pool.note.is_empty() {
        line.push_str(&format!(" ({})", one_line(&pool.note, 160)));
    }
    line
}

/// The run in one line: `prepare 1/1, simulate 120/200 (2 running, 1 failed), 12 groups waiting`.
pub fn plain_line(progress: &v1::RunProgress) -> String {
    let mut parts: Vec<String> = progress
        .groups
        .iter()
        .filter(|group| progress.groups.len() <= GROUPS_SHOWN || is_active(group))
        .take(GROUPS_SHOWN)
        .map(|group| {
            let of = if group.open { "?".to_owned() } else { group.length.to_string() };
            let counts = [
                (group.running, "running"),
                (group.failed, "failed"),
                (group.skipped, "skipped"),
                (group.cancelled, "cancelled"),
            ];
            let counts: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
            let counts = if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) };
            format!("{} {}/{of}{counts}", one_line(&group.group, NAME_CHARS), over(group))
        })
        .collect();
    if progress.groups.len() > GROUPS_SHOWN {
        let ended = progress.groups.iter().filter(|group| is_over(group)).count();
        parts.push(format!("{ended} of {} groups over", progress.groups.len()));
    }
    if !progress.note.is_empty() {
        parts.push(one_line(&progress.note, 200));
    }
    // Why there are not more workers, in the platform's words.
    let noted = progress.pools.iter().filter(|pool| !pool.note.is_empty());
    parts.extend(noted.map(|pool| format!("pool {}: {}", one_line(&pool.pool, NAME_CHARS), one_line(&pool.note, 400))));
    parts.join(", ")
}

/// The display of one run.
pub struct Progress {
    ui: Ui,
    screen: Option<Screen>,
    last: v1::RunProgress,
    begun: BTreeMap<String, (Instant, u32)>,
    printed: String,
    printed_at: Option<Instant>,
    ended_printed: usize,
    notes_printed: String,
}

struct Screen {
    bars: MultiProgress,
    lines: Vec<(ProgressBar, bool)>,
}

impl Progress {
    /// A display as `ui` wants it.
    pub fn new(ui: Ui) -> Progress {
        let screen = ui.bars.then(|| Screen { bars: MultiProgress::new(), lines: Vec::new() });
        let last = v1::RunProgress::default();
        Progress {
            ui,
            screen,
            last,
            begun: BTreeMap::new(),
            printed: String::new(),
            printed_at: None,
            ended_printed: 0,
            notes_printed: String::new(),
        }
    }

    /// The newest state.
    pub fn last(&self) -> &v1::RunProgress {
        &self.last
    }

    /// Shows a new state.
    pub fn update(&mut self, progress: v1::RunProgress) {
        let now = Instant::now();
        for group in progress.groups.iter().filter(|group| is_active(group)) {
            self.begun.entry(group.group.clone()).or_insert((now, over(group)));
        }
        self.last = progress;
        self.draw(now);
    }

    /// Shows what was held back, when its time has come.
    pub fn tick(&mut self) {
        self.draw(Instant::now());
    }

    fn draw(&mut self, now: Instant) {
        let rest = self.rests(now);
        match &mut self.screen {
            Some(screen) => screen.draw(&rows(&self.last, &rest)),
            None if !self.ui.quiet => self.draw_plain(now, false),
            None => {}
        }
    }

    fn rests(&self, now: Instant) -> BTreeMap<String, f64> {
        let rest = |group: &v1::GroupCounts| {
            let (begun, over_then) = self.begun.get(&group.group)?;
            let done = over(group).checked_sub(*over_then).filter(|done| *done >= ESTIMATE_FROM)?;
            let left = group.length.checked_sub(over(group)).filter(|left| *left > 0 && !group.open)?;
            let elapsed = now.duration_since(*begun).as_secs_f64();
            (elapsed >= 2.0).then(|| (group.group.clone(), elapsed / f64::from(done) * f64::from(left)))
        };
        self.last.groups.iter().filter_map(rest).collect()
    }

    fn draw_plain(&mut self, now: Instant, last: bool) {
        let ended = self.last.groups.iter().filter(|group| is_over(group)).count();
        let notes = self.last.pools.iter().map(|pool| pool.note.as_str()).collect::<Vec<_>>().join("\n");
        let news = ended > self.ended_printed || notes != self.notes_printed;
        let wait = if news { PLAIN_EVERY_NEWS } else { PLAIN_EVERY };
        if !last && self.printed_at.is_some_and(|at| now.duration_since(at) < wait) {
            return;
        }
        let line = plain_line(&self.last);
        if line != self.printed && !line.is_empty() {
            self.ui.say(&line);
            self.printed = line;
            self.printed_at = Some(now);
            self.ended_printed = ended;
            self.notes_printed = notes;
        }
    }

    /// A message above the bars, or just a message.
    pub fn say(&self, text: &str) {
        match &self.screen {
            Some(screen) => {
                for line in harmless(text).lines() {
                    // A terminal that is gone takes nothing more.
                    let _ = screen.bars.println(line);
                }
            }
            None => self.ui.say(text),
        }
    }

    /// Removes the bars while `ask` uses the terminal.
    pub fn suspended<T>(&self, ask: impl FnOnce() -> T) -> T {
        match &self.screen {
            Some(screen) => screen.bars.suspend(ask),
            None => ask(),
        }
    }

    /// Ends the display: the last state stays.
    pub fn finish(&mut self) {
        match self.screen.take() {
            Some(screen) => screen.lines.iter().for_each(|(bar, _)| bar.abandon()),
            None if !self.ui.quiet => self.draw_plain(Instant::now(), true),
            None => {}
        }
    }
}

impl Screen {
    fn draw(&mut self, rows: &[Row]) {
        while self.lines.len() > rows.len() {
            if let Some((bar, _)) = self.lines.pop() {
                self.bars.remove(&bar);
            }
        }
        while self.lines.len() < rows.len() {
            self.lines.push((self.bars.add(ProgressBar::new(0)), false));
        }
        for ((bar, styled), row) in self.lines.iter_mut().zip(rows) {
            match row {
                Row::Group { name, over, length, text } => {
                    if !*styled {
                        bar.set_style(group_style());
                        *styled = true;
                    }
                    bar.set_prefix(name.clone());
                    bar.set_length((*length).max(1));
                    bar.set_position(*over);
                    bar.set_message(text.clone());
                }
                Row::Text(text) => {
                    bar.set_style(text_style());
                    *styled = false;
                    bar.set_message(text.clone());
                }
            }
        }
    }
}

fn group_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:24} {bar:24.cyan/dim} {wide_msg}")
        .expect("the template is a constant that parses")
        .progress_chars("━━╌")
}

fn text_style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_msg}").expect("the template is a constant that parses")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, length: u32) -> v1::GroupCounts {
        v1::GroupCounts { group: name.into(), length, ..Default::default() }
    }

    fn check(progress: &v1::RunProgress, rest: &[(&str, f64)]) -> String {
        let rest = rest.iter().map(|(name, rest)| ((*name).to_owned(), *rest)).collect();
        let mut out: String = rows(progress, &rest)
            .iter()
            .map(|row| match row {
                Row::Group { name, over, length, text } => format!("{name:24} [{over:>4} of {length:>4}] {text}\n"),
                Row::Text(text) => format!("{text}\n"),
            })
            .collect();
        out.push_str(&format!("plain: {}\n", plain_line(progress)));
        out
    }

    #[test]
    fn a_run_in_the_middle() {
        let simulate = v1::GroupCounts {
            running: 64,
            succeeded: 400,
            failed: 2,
            retried: 12,
            backoff: 1,
            ready: 533,
            ..group("simulate", 1000)
        };
        let progress = v1::RunProgress {
            groups: vec![
                v1::GroupCounts { succeeded: 1, ..group("prepare", 1) },
                simulate,
                v1::GroupCounts { open: true, waiting: 0, ..group("later", 0) },
                v1::GroupCounts { skipped: 3, cancelled: 1, ..group("a name\nof \x1b[31mmore than twenty-four letters", 4) },
            ],
            pools: vec![v1::PoolCounts {
                pool: "local".into(),
                workers: 2,
                starting: 1,
                lost: 1,
                milli_cpus: 2500,
                milli_cpus_used: 2000,
                memory_bytes: 8 << 30,
                memory_bytes_used: 1 << 30,
                note: "worker local-1 was killed".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        insta::assert_snapshot!(check(&progress, &[("simulate", 725.0)]));
    }

    #[test]
    fn many_groups_take_a_bounded_number_of_lines() {
        let mut groups: Vec<_> = (0..10_000).map(|n| group(&format!("group-{n}"), 5)).collect();
        groups[0].succeeded = 5;
        for group in &mut groups[1..40] {
            group.running = 5;
        }
        let progress = v1::RunProgress { groups, note: "waiting for cpus".into(), ..Default::default() };
        insta::assert_snapshot!(check(&progress, &[]));
    }
}
