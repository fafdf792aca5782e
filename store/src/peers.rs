//! Where holders of objects answer, by the numbers under which the scheduler has introduced them.

use std::sync::Arc;

use dashmap::DashMap;

use crate::Holder;

/// The holders that are known. Copies share them: one thread hears of holders while others look them up.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<DashMap<u32, Holder>>);

impl Peers {
    /// A holder is there, or has moved.
    pub fn introduce(&self, peer: u32, holder: Holder) {
        self.0.insert(peer, holder);
    }

    /// Those of them that are known, in the same order.
    pub fn holders(&self, peers: &[u32]) -> Vec<Holder> {
        peers.iter().filter_map(|peer| self.0.get(peer).map(|holder| holder.clone())).collect()
    }

    /// Nobody is known any more: the numbers are those of another session.
    pub fn clear(&self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_knows_where_a_holder_has_moved_to() {
        let peers = Peers::default();
        let copy = peers.clone();
        for (peer, address) in [(1, "a:1"), (2, "b:1"), (1, "a:2")] {
            peers.introduce(peer, Holder { address: address.to_owned(), host: String::new() });
        }
        let addresses = |peers: &Peers| peers.holders(&[2, 3, 1]).into_iter().map(|holder| holder.address).collect::<Vec<_>>();
        assert_eq!(addresses(&copy), ["b:1", "a:2"]);
        copy.clear();
        assert_eq!(addresses(&peers), Vec::<String>::new());
    }
}
