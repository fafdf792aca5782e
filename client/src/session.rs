//! What a program holds: an open run on a scheduler, into which it submits tasks.

use std::any::TypeId;
use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use scalable_lane::host::Function;
use scalable_proto::v1;

use crate::arguments::{ARGUMENT_BYTES_MAX, Arguments, Given, Shape};
use crate::backend::Backend;
use crate::columns::Columns;
use crate::function::{Callable, Task};
use crate::functions;
use crate::group::{Group, Progress};
use crate::handle::Handle;
use crate::map::Map;
use crate::options::Options;
use crate::outbox::{Elements, Outbox};
use crate::processes::Processes;
use crate::shared::{Shared, Stake};
use crate::template;
use crate::{Client, Error, codec};

/// An open run on a scheduler. Cheap to clone; when the last clone is dropped the run takes no more tasks, and ends when those it has
/// are over and nobody has a handle of theirs.
///
/// ```
/// #[scalable::task]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// # fn main() -> Result<(), scalable::Error> {
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let session = scalable::Session::local().workers(2).start().await?;
/// let nine = session.submit(square, (3,)).await?;
/// assert_eq!(nine.await?, 9);
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) inner: Arc<Inner>,
}

/// Which group single tasks are appended to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    function: TypeId,
    shape: Shape,
    options: Option<Options>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) stake: Arc<Stake>,
    growing: Mutex<FxHashMap<Key, Arc<Group>>>,
    names: Mutex<FxHashMap<String, u32>>,
    pub(crate) backend: Backend,
    components: Vec<Component>,
}

/// What a manifest says of a component.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    pub(crate) name: String,
    pub(crate) milli_cpus: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) env: Vec<(String, String)>,
}

impl Drop for Inner {
    /// Nobody submits any more. What is under way goes on while somebody has a handle.
    fn drop(&mut self) {
        let mut outbox = self.stake.shared.outbox();
        outbox.close();
        self.stake.shared.queued(outbox);
    }
}

thread_local! {
    /// Where a submit encodes its arguments before it takes the outbox's lock: user code never runs under it.
    static GIVEN: RefCell<Given> = RefCell::default();
}

impl Session {
    pub(crate) fn new(
        shared: Arc<Shared>,
        backend: Backend,
        processes: Option<Processes>,
        components: Vec<Component>,
    ) -> Session {
        let stake = Arc::new(Stake { shared, processes });
        let inner = Inner { stake, growing: Mutex::default(), names: Mutex::default(), backend, components };
        Session { inner: Arc::new(inner) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.stake.shared
    }

    /// Submits one call of a task and returns its handle as soon as the call waits to be sent. Tasks of one function and the same
    /// options form one group of the run, which grows; they travel together when they come faster than they can be sent.
    ///
    /// Waits while 32 MiB are not acknowledged by the scheduler.
    ///
    /// # Errors
    /// [`Error::Refused`] when the arguments cannot be encoded, exceed 1 MiB, or name handles of another session; when an option is
    /// not valid; when this program cannot run on the workers. [`Error::Lost`] when the session is over.
    pub async fn submit<C, A>(&self, task: C, arguments: A) -> Result<Handle<<C::Task as Task>::Output>, Error>
    where
        C: Callable,
        A: Arguments<<C::Task as Task>::Parameters>,
    {
        let options = task.into_options();
        if const { A::SHAPE.has_all() } {
            return self.submit_alone::<C::Task, A>(options, &arguments).await;
        }
        let key = Key { function: TypeId::of::<C::Task>(), shape: A::SHAPE, options };
        let known = self.growing().get(&key).cloned();
        let mut group = match known {
            Some(group) => group,
            None => self.grow::<C::Task>(&key).await?,
        };
        if let Some(index) = self.append_now(&group, &key, &arguments)? {
            return Ok(Handle::new(group, index, true));
        }
        // The slow way: it reads a task of a later group, or there is no room.
        let mut given = Given::default();
        self.give(&mut given, &arguments)?;
        if given.sources.iter().any(|source| source.group > group.ordinal()) {
            group = self.grow::<C::Task>(&key).await?;
        }
        let append = |outbox: &mut Outbox| outbox.append_one(group.ordinal(), key.shape, &given.values, &given.sources).ok();
        let index = self.shared().with_room(append).await?;
        Ok(Handle::new(group, index, true))
    }

    /// Appends an element when nothing stands in the way.
    #[inline]
    fn append_now<P, A: Arguments<P>>(&self, group: &Group, key: &Key, arguments: &A) -> Result<Option<u32>, Error> {
        if let Some(error) = self.shared().over() {
            return Err(error.clone());
        }
        GIVEN.with_borrow_mut(|given| {
            given.values.clear();
            given.sources.clear();
            self.give(given, arguments)?;
            if given.sources.iter().any(|source| source.group > group.ordinal()) {
                return Ok(None);
            }
            let append = |outbox: &mut Outbox| outbox.append_one(group.ordinal(), key.shape, &given.values, &given.sources).ok();
            Ok(self.shared().try_now(append))
        })
    }

    /// Encodes the arguments of one call and checks them.
    #[inline]
    fn give<P, A: Arguments<P>>(&self, to: &mut Given, arguments: &A) -> Result<(), Error> {
        arguments.give(to).map_err(|error| unencodable(&error))?;
        self.check(to.values.len(), to)
    }

    /// Checks a call of so many bytes.
    pub(crate) fn check(&self, bytes: usize, given: &Given) -> Result<(), Error> {
        if bytes > ARGUMENT_BYTES_MAX {
            let message = format!("the arguments of one task take {bytes} bytes, the limit is {ARGUMENT_BYTES_MAX}");
            return Err(refused(
                "ARGUMENTS_TOO_LARGE",
                message,
                "scatter large values first and pass their handles, or pass a path",
            ));
        }
        if given.sources.iter().any(|source| source.session != self.shared().number) {
            let message = "a handle of another session was given as argument".to_owned();
            return Err(refused(
                "HANDLE_OF_ANOTHER_SESSION",
                message,
                "submit both tasks in one session, or await the handle first",
            ));
        }
        Ok(())
    }

    /// A call that reads whole arrays: a group of its own.
    async fn submit_alone<F: Task, A: Arguments<F::Parameters>>(
        &self,
        options: Option<Options>,
        arguments: &A,
    ) -> Result<Handle<F::Output>, Error> {
        let mut given = Given::default();
        self.give(&mut given, arguments)?;
        let mut spec = self.spec::<F>(A::SHAPE, &options.unwrap_or_else(F::options)).await?;
        template::fix(&mut spec, A::SHAPE, u32::MAX, &given.sources);
        let group = self.add_group(spec, false);
        let mut elements = Some(Elements::new(A::SHAPE, u32::MAX));
        if let Some(elements) = &mut elements {
            elements.args = given.values;
            elements.push(&[]);
        }
        self.append_elements(&group, &mut elements, true).await?;
        Ok(Handle::new(group, 0, true))
    }

    /// Hands over elements when there is room.
    pub(crate) async fn append_elements(
        &self,
        group: &Arc<Group>,
        elements: &mut Option<Elements>,
        last: bool,
    ) -> Result<(), Error> {
        self.shared()
            .with_room(|outbox| match outbox.append(group.ordinal(), elements.take()?, last) {
                Ok(_) => Some(()),
                Err(back) => {
                    *elements = Some(back);
                    None
                }
            })
            .await
    }

    /// Submits many calls of a task as one array. Awaiting it gives the [`Array`](crate::Array) when all arguments were handed over:
    /// they are taken from their iterators and streams as fast as the scheduler takes them, never all at once. See [`Map`] for ways to
    /// read results meanwhile.
    ///
    /// ```
    /// # #[scalable::task] fn simulate(table: Vec<f64>, scenario: String, year: u32) -> f64 { 0.0 }
    /// # async fn example(session: scalable::Session, table: scalable::Handle<Vec<f64>>) -> Result<(), scalable::Error> {
    /// let scenarios = ["ssp1", "ssp2", "ssp5"];
    /// let runs = session.map(simulate, (&table, scenarios, scalable::same(2050))).await?;
    /// let results = runs.gather().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<'a, C, A>(&self, task: C, arguments: A) -> Map<'a, C::Task, A::Cells>
    where
        C: Callable,
        A: Columns<<C::Task as Task>::Parameters>,
        A::Cells: 'a,
    {
        const { assert!(!A::ENDLESS, "one of the arguments must say how many calls there are: an iterator, a stream or an array") };
        let options = task.into_options().unwrap_or_else(<C::Task as Task>::options);
        Map::new(self.clone(), options, A::SHAPE, A::FIXED, arguments.open())
    }

    /// How far each group of tasks is that somebody still has a handle of, by name.
    pub fn progress(&self) -> Vec<(String, Progress)> {
        let groups = self.shared().groups().into_iter();
        groups.map(|(group, length)| (group.name().to_owned(), Progress { submitted: length, ..group.progress() })).collect()
    }

    /// Waits until every task is over that somebody has a handle of, and ends the session when its handles are dropped. Tasks without a
    /// handle are not waited for.
    pub async fn close(self) {
        for (group, length) in self.shared().groups() {
            let over = poll_fn(|context| group.poll_over_of(length, context.waker()));
            self.shared().while_waiting(over).await;
        }
    }

    /// The connection behind the session, for what is asked about runs and workers; none for a session inside this process.
    pub fn client(&self) -> Option<&Client> {
        match &self.inner.backend {
            Backend::Remote(remote) => Some(&remote.client),
            Backend::Local => None,
        }
    }

    /// Name of the session's run.
    pub fn run(&self) -> &str {
        match &self.inner.backend {
            Backend::Remote(remote) => &remote.run,
            Backend::Local => "local",
        }
    }

    /// The group that single calls are appended to from now on.
    async fn grow<F: Task>(&self, key: &Key) -> Result<Arc<Group>, Error> {
        let options = key.options.clone().unwrap_or_else(F::options);
        let spec = self.spec::<F>(key.shape, &options).await?;
        let group = self.add_group(spec, false);
        self.growing().insert(key.clone(), group.clone());
        Ok(group)
    }

    /// What is said of a group of calls.
    pub(crate) async fn spec<F: Task>(&self, shape: Shape, options: &Options) -> Result<v1::GroupSpec, Error> {
        self.function_spec(&F::FUNCTION, functions::signature::<F>()?, shape, options).await
    }

    /// What is said of a group of calls of this function.
    pub(crate) async fn function_spec(
        &self,
        function: &Function,
        signature: [u8; 32],
        shape: Shape,
        options: &Options,
    ) -> Result<v1::GroupSpec, Error> {
        if let Some(fault) = &options.fault {
            return Err(refused("BAD_OPTION", fault.clone(), ""));
        }
        let executable = if options.native.is_empty() { self.inner.backend.executable().await? } else { None };
        let call = v1::FunctionCall {
            name: function.name.to_owned(),
            codec: codec::NAME.to_owned(),
            executable,
            native: options.native.clone(),
            signature: signature.to_vec().into(),
            ..Default::default()
        };
        let name = if options.name.is_empty() { last_segment(function.name) } else { &options.name };
        let name = self.unique_name(name);
        let spec = template::group_spec(name, call, shape, options);
        self.in_component(spec, options)
    }

    /// With what the options' component says, where the session knows components.
    pub(crate) fn in_component(&self, mut spec: v1::GroupSpec, options: &Options) -> Result<v1::GroupSpec, Error> {
        let components = &self.inner.components;
        if components.is_empty() || options.component.is_empty() {
            return Ok(spec);
        }
        let Some(component) = components.iter().find(|component| component.name == options.component) else {
            let names: Vec<&str> = components.iter().map(|component| component.name.as_str()).collect();
            let message = format!("the manifest has no component `{}`; it has {}", options.component, names.join(", "));
            return Err(refused("UNKNOWN_COMPONENT", message, ""));
        };
        if let Some(template) = &mut spec.template {
            for (name, value) in &component.env {
                template.env.entry(name.clone()).or_insert_with(|| template::literal(value));
            }
        }
        if options.milli_cpus == 0 && options.memory_bytes == 0 {
            let resources = spec.resources.get_or_insert_default();
            resources.milli_cpus = component.milli_cpus.unwrap_or(resources.milli_cpus);
            resources.memory_bytes = component.memory_bytes.unwrap_or(0);
        }
        Ok(spec)
    }

    pub(crate) fn add_group(&self, spec: v1::GroupSpec, in_order: bool) -> Arc<Group> {
        let name = spec.name.clone();
        let shared = self.shared();
        let mut outbox = shared.outbox();
        let ordinal = outbox.add_group(Box::new(spec));
        // Known before it is sent, or what is answered at once would find nobody.
        let group = Group::new(self.inner.stake.clone(), ordinal, name, in_order);
        shared.queued(outbox);
        group
    }

    fn growing(&self) -> MutexGuard<'_, FxHashMap<Key, Arc<Group>>> {
        self.inner.growing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unique_name(&self, wanted: &str) -> String {
        let mut names = self.inner.names.lock().unwrap_or_else(PoisonError::into_inner);
        let used = names.entry(wanted.to_owned()).or_insert(0);
        *used += 1;
        if *used == 1 { wanted.to_owned() } else { format!("{wanted}-{used}") }
    }
}

fn last_segment(name: &str) -> &str {
    name.rsplit("::").next().unwrap_or(name)
}

pub(crate) fn unencodable(error: &codec::CodecError) -> Error {
    refused("ARGUMENTS_NOT_ENCODABLE", format!("an argument could not be encoded: {error}"), "")
}

pub(crate) fn refused(code: &str, message: String, help: &str) -> Error {
    Error::Refused { code: code.to_owned(), message, help: help.to_owned() }
}
