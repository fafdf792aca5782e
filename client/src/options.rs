//! What a task takes and what happens when it ends badly: declared with `#[scalable::task(…)]`, overridden for one submit with
//! `simulate.with().cpus(4)`.

use std::marker::PhantomData;
use std::time::Duration;

use scalable_proto::v1;

use crate::Task;
use crate::units;

/// How functions are kept apart from each other on a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// A process executes one task at a time: a crash, a leak or a tight loop costs that task's attempt only.
    #[default]
    Process,
    /// Many tasks share the threads of one process: for functions of microseconds. A crash costs the attempts that were executing in
    /// that process.
    Thread,
}

/// An amount of cpus: `2`, `0.5`, `"500m"`.
#[derive(Clone, Debug)]
pub struct Cpus(Result<u64, String>);

impl From<i32> for Cpus {
    fn from(cpus: i32) -> Self {
        Cpus(u64::try_from(cpus).ok().filter(|cpus| *cpus > 0).map(|cpus| cpus * 1000).ok_or_else(|| cpus.to_string()))
    }
}
impl From<u32> for Cpus {
    fn from(cpus: u32) -> Self {
        Cpus(if cpus > 0 { Ok(u64::from(cpus) * 1000) } else { Err(cpus.to_string()) })
    }
}
impl From<f64> for Cpus {
    fn from(cpus: f64) -> Self {
        let milli = (cpus * 1000.0).round();
        // At most the manifest's limit, far below where a float loses integers.
        Cpus(if (1.0..=1e9).contains(&milli) { Ok(milli as u64) } else { Err(cpus.to_string()) })
    }
}
impl From<&str> for Cpus {
    fn from(cpus: &str) -> Self {
        Cpus(units::milli_cpus(cpus).ok_or_else(|| cpus.to_owned()))
    }
}

/// An amount of memory: bytes, or text like `"512MiB"` or `"2GB"`.
#[derive(Clone, Debug)]
pub struct Memory(Result<u64, String>);

impl Memory {
    pub(crate) fn bytes(self) -> Result<u64, String> {
        self.0
    }
}

impl From<u64> for Memory {
    fn from(bytes: u64) -> Self {
        Memory(if bytes > 0 { Ok(bytes) } else { Err("0".to_owned()) })
    }
}
impl From<i32> for Memory {
    fn from(bytes: i32) -> Self {
        Memory(u64::try_from(bytes).ok().filter(|bytes| *bytes > 0).ok_or_else(|| bytes.to_string()))
    }
}
impl From<&str> for Memory {
    fn from(memory: &str) -> Self {
        Memory(units::memory(memory).ok_or_else(|| memory.to_owned()))
    }
}

/// A span of time: a [`Duration`], or text like `"500ms"`, `"10m"` or `"1h30m"`. Milliseconds inside, rounded up.
#[derive(Clone, Debug)]
pub struct Span(Result<u64, String>);

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Span(u64::try_from(duration.as_nanos().div_ceil(1_000_000)).map_err(|_| format!("{duration:?}")))
    }
}
impl From<&str> for Span {
    fn from(span: &str) -> Self {
        Span(units::duration_ms(span).ok_or_else(|| span.to_owned()))
    }
}

/// Everything that can be said of a task beside its function. What is not said is the component's, or the cluster's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    pub(crate) component: String,
    pub(crate) milli_cpus: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) gpus: u64,
    pub(crate) custom: Vec<(String, u64)>,
    pub(crate) retries: u32,
    pub(crate) backoff_ms: u64,
    pub(crate) backoff_max_ms: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) grace_ms: u64,
    pub(crate) retry_on: Vec<String>,
    pub(crate) oom_factor_milli: u32,
    pub(crate) timeout_factor_milli: u32,
    pub(crate) priority: i32,
    pub(crate) max_parallel: u32,
    pub(crate) isolation: Isolation,
    pub(crate) native: String,
    pub(crate) name: String,
    /// The first figure that was not one: said when the task is submitted.
    pub(crate) fault: Option<String>,
}

/// A task with options of its own for the submits it is given to; made by `simulate.with()`. What is not set is as the task was
/// declared.
///
/// ```
/// #[scalable::task(cpus = 1, retries = 2)]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// let urgent = square.with().priority(10).memory("2GiB").timeout("30s");
/// let nine = session.submit(urgent, (3,)).await?.await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Configured<F> {
    pub(crate) options: Options,
    task: PhantomData<F>,
}

impl<F: Task> Configured<F> {
    /// The task as it was declared.
    #[doc(hidden)]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Configured { options: F::options(), task: PhantomData }
    }
}

/// Writes every setter twice: for [`Options`] itself, and for a [`Configured`] task.
macro_rules! setters {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $of:ty),*) |$options:ident| $set:block)*) => {
        impl Options {
            $($(#[$doc])* pub fn $name(mut self, $($argument: $of),*) -> Self {
                let $options = &mut self;
                $set
                self
            })*
        }
        impl<F: Task> Configured<F> {
            $($(#[$doc])* pub fn $name(mut self, $($argument: $of),*) -> Self {
                self.options = self.options.$name($($argument),*);
                self
            })*
        }
    };
}

setters! {
    /// Cpus it takes: `2`, `0.5`, `"500m"`. 1 unless said.
    fn cpus(cpus: impl Into<Cpus>) |options| {
        match cpus.into().0 {
            Ok(milli) => options.milli_cpus = milli,
            Err(text) => options.faulty(format!("cpus are a number like 2, 0.5 or \"500m\", not {text:?}")),
        }
    }
    /// Memory it takes: bytes, or text like `"512MiB"`.
    fn memory(memory: impl Into<Memory>) |options| {
        match memory.into().0 {
            Ok(bytes) => options.memory_bytes = bytes,
            Err(text) => options.faulty(format!("memory is a figure like \"512MiB\" or \"2GB\", not {text:?}")),
        }
    }
    /// Whole gpus it takes.
    fn gpus(gpus: u64) |options| { options.gpus = gpus; }
    /// An amount of a custom resource it takes, named as in the manifest.
    fn resource(name: &str, amount: u64) |options| {
        options.custom.retain(|(known, _)| known != name);
        options.custom.push((name.to_owned(), amount));
        options.custom.sort();
    }
    /// The component it runs in: the manifest's word for image, environment and mounts. `default` unless said.
    fn component(component: &str) |options| { options.component = component.to_owned(); }
    /// Further attempts after it failed, panicked or ran into its timeout. 0 unless said. Lost workers and memory have budgets of
    /// their own.
    fn retries(retries: u32) |options| { options.retries = retries; }
    /// Wait before the first retry, doubled for each further one. 1 s unless said.
    fn backoff(first: impl Into<Span>) |options| {
        match first.into().0 {
            Ok(millis) => options.backoff_ms = millis,
            Err(text) => options.faulty_span("backoff", &text),
        }
    }
    /// Longest wait before a retry. 60 s unless said.
    fn backoff_max(longest: impl Into<Span>) |options| {
        match longest.into().0 {
            Ok(millis) => options.backoff_max_ms = millis,
            Err(text) => options.faulty_span("backoff_max", &text),
        }
    }
    /// Longest an attempt may execute. No limit unless said.
    fn timeout(longest: impl Into<Span>) |options| {
        match longest.into().0 {
            Ok(millis) => options.timeout_ms = millis,
            Err(text) => options.faulty_span("timeout", &text),
        }
    }
    /// For commands: how long they have between SIGTERM and SIGKILL. 10 s unless said.
    fn grace(longest: impl Into<Span>) |options| {
        match longest.into().0 {
            Ok(millis) => options.grace_ms = millis,
            Err(text) => options.faulty_span("grace", &text),
        }
    }
    /// Failures worth a retry: `"timeout"`, `"oom"`, `"lost"`, `"signal"`, `"exit:75"`, `"missing_output"`. Any unless said.
    fn retry_on(causes: impl IntoIterator<Item = impl Into<String>>) |options| {
        options.retry_on = causes.into_iter().map(Into::into).collect();
    }
    /// What memory is multiplied with after it was not enough. 1.5 unless said.
    fn oom_factor(factor: f64) |options| {
        match milli(factor) {
            Some(factor) => options.oom_factor_milli = factor,
            None => options.faulty(format!("oom_factor is a number from 1 to 1000, not {factor}")),
        }
    }
    /// What the timeout is multiplied with after it was not enough. 1 unless said.
    fn timeout_factor(factor: f64) |options| {
        match milli(factor) {
            Some(factor) => options.timeout_factor_milli = factor,
            None => options.faulty(format!("timeout_factor is a number from 1 to 1000, not {factor}")),
        }
    }
    /// Larger first; 0 unless said.
    fn priority(priority: i32) |options| { options.priority = priority; }
    /// Most tasks with these options that run at a time. No limit unless said.
    fn max_parallel(tasks: u32) |options| { options.max_parallel = tasks; }
    /// How it is kept apart from other tasks; [`Isolation::Process`] unless said.
    fn isolation(isolation: Isolation) |options| { options.isolation = isolation; }
    /// Path, in the component's image, of the program that holds the function: nothing is shipped then.
    fn native(path: &str) |options| { options.native = path.to_owned(); }
    /// Name of its group in tables and messages; the function's name unless said. A name that is taken gets a number.
    fn name(name: &str) |options| { options.name = name.to_owned(); }
}

fn milli(factor: f64) -> Option<u32> {
    // In this range the product is exact enough and fits.
    (1.0..=1000.0).contains(&factor).then(|| (factor * 1000.0).round() as u32)
}

impl Options {
    /// Nothing is said.
    pub fn new() -> Self {
        Options::default()
    }

    fn faulty(&mut self, message: String) {
        self.fault.get_or_insert(message);
    }

    fn faulty_span(&mut self, what: &str, text: &str) {
        self.faulty(format!("{what} is a span of time like \"500ms\", \"10m\" or \"1h30m\", not {text:?}"));
    }

    /// What it takes; 0 where nothing is said.
    pub(crate) fn resources(&self) -> v1::Resources {
        let amount = |(name, amount): &(String, u64)| v1::NamedAmount { name: name.clone(), amount: *amount };
        v1::Resources {
            milli_cpus: self.milli_cpus,
            memory_bytes: self.memory_bytes,
            gpus: self.gpus,
            custom: self.custom.iter().map(amount).collect(),
        }
    }

    /// What happens when it ends badly.
    pub(crate) fn policy(&self) -> v1::Policy {
        let growth =
            |factor_milli: u32| (factor_milli > 0).then_some(v1::Growth { factor_milli, memory_bytes_max: 0, timeout_ms_max: 0 });
        let backoff = (self.backoff_ms > 0 || self.backoff_max_ms > 0).then(|| v1::Backoff {
            initial_ms: if self.backoff_ms > 0 { self.backoff_ms } else { 1_000 },
            factor_milli: 2_000,
            max_ms: if self.backoff_max_ms > 0 { self.backoff_max_ms } else { 60_000.max(self.backoff_ms) },
        });
        v1::Policy {
            retries: self.retries,
            backoff,
            timeout_ms: self.timeout_ms,
            grace_ms: self.grace_ms,
            on_oom: growth(self.oom_factor_milli),
            on_timeout: growth(self.timeout_factor_milli),
            retry_on: self.retry_on.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_in_every_form_become_the_same() {
        let text = Options::new().cpus("500m").memory("1KiB").timeout("1m");
        let typed = Options::new().cpus(0.5).memory(1024).timeout(Duration::from_secs(60));
        assert_eq!(text, typed);
        assert_eq!(typed.fault, None);
    }

    #[test]
    fn the_first_figure_that_is_none_is_kept_for_the_submit() {
        let options = Options::new().cpus(0).memory("much");
        assert_eq!(options.fault.as_deref(), Some("cpus are a number like 2, 0.5 or \"500m\", not \"0\""));
    }
}
