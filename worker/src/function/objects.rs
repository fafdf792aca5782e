//! Results that stay on the worker because they are too large to travel with their report.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use scalable_lane::memory::Sealed;

/// Most bytes of objects kept in memory where the worker has no memory figure of its own.
pub const BYTES_MAX: u64 = 4 << 30;

/// An object's name: which attempt of which task has made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    /// The cluster's number of the group.
    pub group: u32,
    /// The element.
    pub index: u32,
    /// The attempt.
    pub attempt: u32,
}

/// Where objects are kept. Called on the reactor: never waits.
pub trait Objects {
    /// Keeps one.
    ///
    /// # Errors
    /// One sentence: there is no room for it.
    fn put(&mut self, run: u32, key: ObjectKey, memory: Arc<Sealed>) -> Result<(), String>;
    /// One that is kept here.
    fn get(&self, key: ObjectKey) -> Option<Arc<Sealed>>;
    /// Nobody needs this element's object any more, whichever attempt has made it.
    fn drop_element(&mut self, group: u32, index: u32);
    /// Nobody needs anything of this run any more.
    fn drop_run(&mut self, run: u32);
    /// Nobody needs anything any more.
    fn clear(&mut self);
    /// Bytes in memory.
    fn stored_bytes(&self) -> u64;
}

/// Objects in memory, at most so many bytes.
#[derive(Debug)]
pub struct InMemory {
    bytes_max: u64,
    bytes: u64,
    /// By group and index: the attempt, the run, the bytes.
    kept: FxHashMap<(u32, u32), (u32, u32, Arc<Sealed>)>,
}

impl InMemory {
    /// None so far.
    pub fn new(bytes_max: u64) -> Self {
        InMemory { bytes_max, bytes: 0, kept: FxHashMap::default() }
    }
}

impl Objects for InMemory {
    fn put(&mut self, run: u32, key: ObjectKey, memory: Arc<Sealed>) -> Result<(), String> {
        self.drop_element(key.group, key.index);
        let bytes = self.bytes.saturating_add(memory.len());
        if bytes > self.bytes_max {
            return Err(format!(
                "the worker keeps {} bytes of results and has room for {}; a result of {} bytes is too much: consume or release \
                 results earlier, or use more workers",
                self.bytes,
                self.bytes_max,
                memory.len()
            ));
        }
        self.bytes = bytes;
        self.kept.insert((key.group, key.index), (key.attempt, run, memory));
        Ok(())
    }

    fn get(&self, key: ObjectKey) -> Option<Arc<Sealed>> {
        let (attempt, _, memory) = self.kept.get(&(key.group, key.index))?;
        (*attempt == key.attempt).then(|| memory.clone())
    }

    fn drop_element(&mut self, group: u32, index: u32) {
        if let Some((.., memory)) = self.kept.remove(&(group, index)) {
            self.bytes -= memory.len();
        }
    }

    fn drop_run(&mut self, run: u32) {
        self.kept.retain(|_, (_, of, _)| *of != run);
        self.bytes = self.kept.values().map(|(.., memory)| memory.len()).sum();
    }

    fn clear(&mut self) {
        self.kept.clear();
        self.bytes = 0;
    }

    fn stored_bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_dropped_once() {
        let mut objects = InMemory::new(10);
        let memory = |bytes: &[u8]| Arc::new(Sealed::new(bytes).expect("memory"));
        let key = |index| ObjectKey { group: 1, index, attempt: 2 };
        assert_eq!(objects.put(7, key(0), memory(b"123456")), Ok(()));
        assert!(objects.put(7, key(1), memory(b"12345")).is_err_and(|why| why.contains("room for 10")));
        assert_eq!(objects.put(7, key(0), memory(b"1234567890")), Ok(()), "a later attempt takes the place of an earlier");
        assert!(objects.get(key(0)).is_some() && objects.get(ObjectKey { attempt: 1, ..key(0) }).is_none());
        objects.drop_element(1, 0);
        objects.drop_element(1, 0);
        assert_eq!((objects.stored_bytes(), objects.put(8, key(1), memory(b"12345"))), (0, Ok(())));
        objects.drop_run(7);
        assert_eq!(objects.stored_bytes(), 5);
        objects.drop_run(8);
        assert_eq!(objects.stored_bytes(), 0);
    }
}
