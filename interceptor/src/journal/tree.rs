//! The tree over all blocks: RFC 6962's, whose leaves are the blocks' chain values, with proofs that a block is in it.

use super::block::{Hash, sha256};

/// What stands for a leaf in the tree.
pub(super) fn leaf_hash(leaf: &Hash) -> Hash {
    sha256(&[&[0x00], leaf])
}

/// What stands for two subtrees that are next to each other.
fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[0x01], left, right])
}

/// RFC 6962's tree, grown leaf by leaf: the roots of the perfect trees that it consists of, largest first.
#[derive(Debug, Default, Clone)]
pub(super) struct Tree {
    size: u64,
    peaks: Vec<Hash>,
}

impl Tree {
    pub(super) fn push(&mut self, leaf: &Hash) {
        let mut hash = leaf_hash(leaf);
        // Each trailing one of the size is a perfect tree that the new leaf completes a larger one with.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        match peaks.next() {
            None => sha256(&[]),
            Some(last) => peaks.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

/// A growing tree that also tells, of some of its leaves, how they are proved to be in it.
#[derive(Debug, Default)]
pub(super) struct Prover {
    size: u64,
    /// The perfect trees that it consists of, largest first, each with those of its leaves that are to be proved.
    peaks: Vec<(Hash, Vec<usize>)>,
    /// Of each leaf that is to be proved the hashes beside its way up so far.
    paths: Vec<Vec<Hash>>,
}

impl Prover {
    /// Adds a leaf, which is to be proved or not.
    pub(super) fn push(&mut self, leaf: &Hash, is_wanted: bool) {
        let mut wanted = Vec::new();
        if is_wanted {
            wanted.push(self.paths.len());
            self.paths.push(Vec::new());
        }
        let mut right = (leaf_hash(leaf), wanted);
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                right = self.join(left, right);
            }
        }
        self.peaks.push(right);
        self.size += 1;
    }

    fn join(&mut self, left: (Hash, Vec<usize>), right: (Hash, Vec<usize>)) -> (Hash, Vec<usize>) {
        for (below, beside) in [(&left.1, &right.0), (&right.1, &left.0)] {
            for place in below {
                if let Some(path) = self.paths.get_mut(*place) {
                    path.push(*beside);
                }
            }
        }
        let hash = node_hash(&left.0, &right.0);
        let mut wanted = left.1;
        wanted.extend(right.1);
        (hash, wanted)
    }

    /// The tree's root, and of each leaf that was to be proved its proof: RFC 6962's audit path, 2.1.1.
    pub(super) fn finish(mut self) -> (Hash, Vec<Vec<Hash>>) {
        let Some(mut right) = self.peaks.pop() else {
            return (sha256(&[]), self.paths);
        };
        while let Some(left) = self.peaks.pop() {
            right = self.join(left, right);
        }
        (right.0, self.paths)
    }
}

/// The root of the tree of `size` leaves of which `leaf` is the one at `index`, if `proof` is its proof; `None`
/// where it can't be one. As of RFC 9162, 2.1.3.2.
pub(super) fn root_of(leaf: &Hash, index: u64, size: u64, proof: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut place, mut last) = (index, size - 1);
    let mut hash = leaf_hash(leaf);
    for beside in proof {
        if last == 0 {
            return None;
        }
        if place & 1 == 1 || place == last {
            hash = node_hash(beside, &hash);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, beside);
        }
        place >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962, 2.1: the hash of a list by its definition.
    fn by_definition(leaves: &[[u8; 32]]) -> [u8; 32] {
        match leaves {
            [] => sha256(&[]),
            [one] => sha256(&[&[0], one]),
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                sha256(&[
                    &[1],
                    &by_definition(&leaves[..split]),
                    &by_definition(&leaves[split..]),
                ])
            }
        }
    }

    #[test]
    fn the_growing_tree_is_the_one_that_the_rfc_defines() {
        let leaves: Vec<[u8; 32]> = (0..70_u8).map(|number| [number; 32]).collect();
        let mut tree = Tree::default();
        for size in 0..leaves.len() {
            assert_eq!(tree.root(), by_definition(&leaves[..size]), "{size} leaves");
            tree.push(&leaves[size]);
        }
    }

    #[test]
    fn what_is_in_the_tree_is_proved_and_nothing_else_is() {
        let leaves: Vec<[u8; 32]> = (0..70_u8).map(|number| [number; 32]).collect();
        for size in 1..leaves.len() {
            let mut prover = Prover::default();
            for (place, leaf) in leaves[..size].iter().enumerate() {
                prover.push(leaf, place % 3 != 1);
            }
            let (root, proofs) = prover.finish();
            assert_eq!(root, by_definition(&leaves[..size]));
            let wanted = (0..size).filter(|place| place % 3 != 1);
            for (index, proof) in wanted.zip(&proofs) {
                let proved = |leaf: usize, index: usize, size: usize, proof: &[[u8; 32]]| {
                    root_of(&leaves[leaf], index as u64, size as u64, proof) == Some(root)
                };
                assert!(proved(index, index, size, proof), "{index} of {size}");
                assert!(!proved(index + 1, index, size, proof));
                assert!(!proved(index, index + 1, size, proof));
                assert!(!proved(index, index, size, &[&proof[..], &[root]].concat()));
                for place in 0..proof.len() {
                    let mut other = proof.clone();
                    other[place][7] ^= 1;
                    assert!(!proved(index, index, size, &other));
                    other.remove(place);
                    assert!(!proved(index, index, size, &other));
                }
            }
        }
    }
}
