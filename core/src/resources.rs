//! What tasks take and workers have: integers only, compared exactly.

use smallvec::SmallVec;

/// An interned name of a custom resource. Whoever builds requests and capacities interns with one [`Names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName(pub u16);

/// A vector of amounts. `custom` is sorted by name, without zero entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Thousandths of a cpu.
    pub milli_cpus: u64,
    /// Bytes. A worker whose capacity is [`Resources::MEMORY_UNACCOUNTED`] does not account for memory.
    pub memory_bytes: u64,
    /// Whole gpus.
    pub gpus: u64,
    /// Custom resources by name.
    pub custom: SmallVec<[(ResourceName, u64); 2]>,
}

impl Resources {
    /// Capacity of a worker without any memory figure: every request fits.
    pub const MEMORY_UNACCOUNTED: u64 = u64::MAX;

    /// Amount of a custom resource.
    pub fn custom(&self, name: ResourceName) -> u64 {
        self.custom.iter().find(|(n, _)| *n == name).map_or(0, |(_, amount)| *amount)
    }

    /// True when `request` fits into what is left of `self` after `used`.
    pub fn fits(&self, used: &Resources, request: &Resources) -> bool {
        let room = |capacity: u64, used: u64, request: u64| capacity == u64::MAX || used.saturating_add(request) <= capacity;
        room(self.milli_cpus, used.milli_cpus, request.milli_cpus)
            && room(self.memory_bytes, used.memory_bytes, request.memory_bytes)
            && room(self.gpus, used.gpus, request.gpus)
            && request.custom.iter().all(|&(name, amount)| room(self.custom(name), used.custom(name), amount))
    }

    /// Adds `other`, saturating.
    pub fn add(&mut self, other: &Resources) {
        self.milli_cpus = self.milli_cpus.saturating_add(other.milli_cpus);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.gpus = self.gpus.saturating_add(other.gpus);
        for &(name, amount) in &other.custom {
            match self.custom.binary_search_by_key(&name, |(n, _)| *n) {
                Ok(at) => self.custom[at].1 = self.custom[at].1.saturating_add(amount),
                Err(at) => self.custom.insert(at, (name, amount)),
            }
        }
    }

    /// Takes `other` away. What was never added is a bug of the caller and asserted.
    pub fn remove(&mut self, other: &Resources) {
        debug_assert!(self.milli_cpus >= other.milli_cpus && self.memory_bytes >= other.memory_bytes && self.gpus >= other.gpus);
        self.milli_cpus = self.milli_cpus.saturating_sub(other.milli_cpus);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.gpus = self.gpus.saturating_sub(other.gpus);
        for &(name, amount) in &other.custom {
            if let Ok(at) = self.custom.binary_search_by_key(&name, |(n, _)| *n) {
                self.custom[at].1 = self.custom[at].1.saturating_sub(amount);
            }
        }
        self.custom.retain(|(_, amount)| *amount > 0);
    }
}

/// Interner of custom resource names.
#[derive(Clone, Debug, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// Most names a cluster may know.
    pub const MAX: usize = 1024;

    /// The name's number, or nothing when [`Names::MAX`] are taken.
    pub fn intern(&mut self, name: &str) -> Option<ResourceName> {
        if let Some(at) = self.0.iter().position(|n| n == name) {
            return Some(ResourceName(at as u16));
        }
        if self.0.len() >= Self::MAX {
            return None;
        }
        self.0.push(name.to_owned());
        Some(ResourceName((self.0.len() - 1) as u16))
    }

    /// The name behind a number.
    pub fn name(&self, name: ResourceName) -> &str {
        self.0.get(usize::from(name.0)).map_or("?", String::as_str)
    }
}
