//! An ordered map whose copies cost nothing: they share the unchanged nodes.
//!
//! A tree of reference-counted nodes. A write copies the nodes on its path that another copy of the map shares, and
//! changes the others in place. So a copy takes constant time, and a write is bounded by the depth of the tree.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;

/// Maximum number of entries of a leaf, or children of an inner node.
const NODE_MAX: usize = 32;
/// A node with fewer is joined with the one beside it.
const NODE_MIN: usize = 8;

const _: () = assert!(2 * NODE_MIN <= NODE_MAX, "what is split is not joined again at once");

/// The writable map.
#[derive(Clone)]
pub(crate) struct Ordered<K, V>(Frozen<K, V>);

/// A read-only copy of it, or of a part of it.
#[derive(Clone)]
pub(crate) struct Frozen<K, V> {
    root: Option<Arc<Node<K, V>>>,
}

/// A child of an inner node, with its bound.
type Child<K, V> = (K, Arc<Node<K, V>>);

#[derive(Clone)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    /// Children, each with a bound: none of its keys is below it, and all keys of the previous child are. The bound of
    /// the first child is meaningless.
    Inner(Vec<Child<K, V>>),
}

impl<K, V> Default for Ordered<K, V> {
    fn default() -> Self {
        Self(Frozen::default())
    }
}

impl<K, V> Default for Frozen<K, V> {
    fn default() -> Self {
        Self { root: None }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> PartialEq for Ordered<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().eq(other.0.iter())
    }
}

impl<K: Ord + Clone, V: Clone> Ordered<K, V> {
    /// Puts a value and returns the old one.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some(root) = &mut self.0.root else {
            self.0.root = Some(Arc::new(Node::Leaf(vec![(key, value)])));
            return None;
        };
        let (old, split) = Arc::make_mut(root).insert(key, value);
        if let Some((bound, right)) = split {
            let left = Arc::clone(root);
            *root = Arc::new(Node::Inner(vec![(bound.clone(), left), (bound, right)]));
        }
        old
    }

    /// Returns the value of a key, to be changed in place. Copies the nodes on the path to it that another copy of the
    /// map shares, even if there is no such key.
    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let mut node = Arc::make_mut(self.0.root.as_mut()?);
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
                    return Some(&mut entries[at].1);
                }
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    node = Arc::make_mut(&mut children[at].1);
                }
            }
        }
    }

    /// Removes a key and returns its value.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        // Nothing is copied if there is no such key.
        self.0.get(key)?;
        let root = self.0.root.as_mut()?;
        let old = Arc::make_mut(root).remove(key);
        loop {
            let only = match &**root {
                Node::Inner(children) if children.len() == 1 => Arc::clone(&children[0].1),
                Node::Leaf(entries) if entries.is_empty() => {
                    self.0.root = None;
                    return old;
                }
                _ => return old,
            };
            *root = only;
        }
    }

    /// Returns all entries for which `place` returns `Equal`, which must be adjacent; possibly with some of their
    /// neighbours, but at most two nodes of them. The copy does not see later writes.
    pub(crate) fn part(&self, place: impl Fn(&K) -> Ordering) -> Frozen<K, V> {
        Frozen { root: self.0.root.as_ref().and_then(|root| part_of(root, &place)) }
    }

    /// Returns the current map, read-only.
    pub(crate) fn all(&self) -> &Frozen<K, V> {
        &self.0
    }
}

impl<K: Ord, V> Frozen<K, V> {
    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
                    return Some(&entries[at].1);
                }
                Node::Inner(children) => node = &children[child_of(children, key)].1,
            }
        }
    }

    /// Returns the entries from a key on, in order.
    pub(crate) fn from<Q: Ord + ?Sized>(&self, key: &Q) -> Entries<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let mut entries = Entries { above: Vec::new(), leaf: [].iter() };
        let mut node = self.root.as_deref();
        while let Some(at) = node {
            match at {
                Node::Leaf(leaf) => {
                    let first = leaf.partition_point(|(other, _)| other.borrow() < key);
                    entries.leaf = leaf[first..].iter();
                    node = None;
                }
                Node::Inner(children) => {
                    let child = child_of(children, key);
                    entries.above.push(children[child + 1..].iter());
                    node = Some(&children[child].1);
                }
            }
        }
        entries
    }

    /// Returns all entries, in order.
    pub(crate) fn iter(&self) -> Entries<'_, K, V> {
        let mut entries = Entries { above: Vec::new(), leaf: [].iter() };
        if let Some(root) = &self.root {
            entries.descend(root);
        }
        entries
    }
}

/// Entries of a map, in order.
pub(crate) struct Entries<'a, K, V> {
    /// The remaining children of each inner node on the path to the leaf.
    above: Vec<std::slice::Iter<'a, Child<K, V>>>,
    leaf: std::slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Entries<'a, K, V> {
    fn descend(&mut self, mut node: &'a Node<K, V>) {
        loop {
            match node {
                Node::Leaf(leaf) => {
                    self.leaf = leaf.iter();
                    return;
                }
                Node::Inner(children) => {
                    let mut rest = children.iter();
                    let (_, first) = rest.next().expect("an inner node has children");
                    self.above.push(rest);
                    node = first;
                }
            }
        }
    }
}

impl<'a, K, V> Iterator for Entries<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            match self.above.last_mut()?.next() {
                Some((_, child)) => self.descend(child),
                None => drop(self.above.pop()),
            }
        }
    }
}

/// Returns the child that a key belongs to.
fn child_of<K: Borrow<Q>, V, Q: Ord + ?Sized>(children: &[(K, V)], key: &Q) -> usize {
    children[1..].partition_point(|(bound, _)| bound.borrow() <= key)
}

fn part_of<K: Clone, V>(node: &Arc<Node<K, V>>, place: &impl Fn(&K) -> Ordering) -> Option<Arc<Node<K, V>>> {
    let children = match &**node {
        Node::Leaf(entries) => {
            return entries.iter().any(|(key, _)| place(key).is_eq()).then(|| Arc::clone(node));
        }
        Node::Inner(children) => children,
    };
    let first = children[1..].partition_point(|(bound, _)| place(bound).is_lt());
    let last = children[1..].partition_point(|(bound, _)| place(bound).is_le());
    let parts = children[first..=last].iter().zip(first..).filter_map(|((bound, child), at)| {
        let inside = first < at && at < last;
        let part = if inside { Some(Arc::clone(child)) } else { part_of(child, place) };
        part.map(|part| (bound.clone(), part))
    });
    let mut parts: Vec<_> = parts.collect();
    match parts.len() {
        0 | 1 => parts.pop().map(|(_, part)| part),
        _ => Some(Arc::new(Node::Inner(parts))),
    }
}

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    /// Returns the old value, and the node that was split off to the right.
    fn insert(&mut self, key: K, value: V) -> (Option<V>, Option<Child<K, V>>) {
        match self {
            Self::Leaf(entries) => match entries.binary_search_by(|(other, _)| other.cmp(&key)) {
                Ok(at) => return (Some(std::mem::replace(&mut entries[at].1, value)), None),
                Err(at) => entries.insert(at, (key, value)),
            },
            Self::Inner(children) => {
                let at = child_of(children, &key);
                match Arc::make_mut(&mut children[at].1).insert(key, value) {
                    (old, None) => return (old, None),
                    (_, Some(right)) => children.insert(at + 1, right),
                }
            }
        }
        (None, self.split())
    }

    /// Removes an existing key.
    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Leaf(entries) => {
                let at = entries.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
                Some(entries.remove(at).1)
            }
            Self::Inner(children) => {
                let at = child_of(children, key);
                let child = Arc::make_mut(&mut children[at].1);
                let old = child.remove(key);
                if child.len() < NODE_MIN && children.len() > 1 {
                    join(children, at.saturating_sub(1));
                }
                old
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn split(&mut self) -> Option<Child<K, V>> {
        let half = self.len() / 2;
        if self.len() <= NODE_MAX {
            return None;
        }
        Some(match self {
            Self::Leaf(entries) => {
                let right = entries.split_off(half);
                (right[0].0.clone(), Arc::new(Self::Leaf(right)))
            }
            Self::Inner(children) => {
                let right = children.split_off(half);
                (right[0].0.clone(), Arc::new(Self::Inner(right)))
            }
        })
    }
}

/// Joins a child with the next one, and splits the two again if they are too many.
fn join<K: Ord + Clone, V: Clone>(children: &mut Vec<Child<K, V>>, at: usize) {
    let (bound, right) = children.remove(at + 1);
    let left = Arc::make_mut(&mut children[at].1);
    match (&mut *left, Arc::unwrap_or_clone(right)) {
        (Node::Leaf(left), Node::Leaf(right)) => left.extend(right),
        (Node::Inner(left), Node::Inner(mut right)) => {
            // It is no longer a first child.
            right[0].0 = bound;
            left.extend(right);
        }
        _ => unreachable!("all leaves of a map that is written are equally deep"),
    }
    if let Some(right) = left.split() {
        children.insert(at + 1, right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn entries(map: &Frozen<u32, u64>) -> Vec<(u32, u64)> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    fn check(node: &Node<u32, u64>, is_root: bool) -> usize {
        assert!(node.len() <= NODE_MAX && (is_root || node.len() >= NODE_MIN), "{} in a node", node.len());
        match node {
            Node::Leaf(_) => 1,
            Node::Inner(children) => {
                let depths: Vec<usize> = children.iter().map(|(_, child)| check(child, false)).collect();
                assert!(depths.iter().all(|depth| *depth == depths[0]), "all leaves are equally deep");
                depths[0] + 1
            }
        }
    }

    /// Random writes against a model, with copies taken meanwhile: each copy stays unchanged, and lookups, iteration
    /// and parts equal the model's.
    #[test]
    fn a_copy_stays_as_it_was_and_the_map_is_as_its_model() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..30 {
            let keys = [40, 400, 4_000][round % 3];
            let mut map = Ordered::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut copies = Vec::new();
            for step in 0..6_000 {
                // It grows at first, and shrinks at the end.
                let puts = if step < 3_000 { 7 } else { 2 };
                let key = rng.u32(..keys);
                if rng.u8(..10) < puts {
                    let value = rng.u64(..);
                    if rng.bool() {
                        assert_eq!(map.insert(key, value), model.insert(key, value));
                    } else {
                        let (found, expected) = (map.get_mut(&key), model.get_mut(&key));
                        assert_eq!(found, expected);
                        if let (Some(found), Some(expected)) = (found, expected) {
                            (*found, *expected) = (value, value);
                        }
                    }
                } else {
                    assert_eq!(map.remove(&key), model.remove(&key));
                }
                if step % 500 == 0 {
                    let (from, to) = (rng.u32(..keys), rng.u32(..keys));
                    let place = |key: &u32| match *key {
                        key if key < from => Ordering::Less,
                        key if key > to => Ordering::Greater,
                        _ => Ordering::Equal,
                    };
                    copies.push((map.all().clone(), model.clone(), 0..=keys, usize::MAX));
                    if from <= to {
                        copies.push((map.part(place), model.clone(), from..=to, 2 * NODE_MAX));
                    }
                }
            }
            // With few keys, the last one may be removed at the end.
            map.all().root.as_ref().map(|root| check(root, true));
            assert_eq!(entries(map.all()), model.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
            for (copy, model, within, more_max) in copies {
                let expected: Vec<_> = model.range(within.clone()).map(|(k, v)| (*k, *v)).collect();
                let all = entries(&copy);
                assert!(
                    all.len() <= expected.len().saturating_add(more_max),
                    "{} of {}",
                    all.len(),
                    expected.len()
                );
                let found: Vec<_> = all.into_iter().filter(|(key, _)| within.contains(key)).collect();
                assert_eq!(found, expected);
                for _ in 0..20 {
                    let key = rng.u32(within.clone());
                    assert_eq!(copy.get(&key), model.get(&key));
                    let walked = copy.from(&key).map(|(k, v)| (*k, *v)).filter(|(k, _)| within.contains(k));
                    let expected = model.range(key..=*within.end()).map(|(k, v)| (*k, *v));
                    assert!(walked.eq(expected), "from {key}");
                }
            }
            while let Some((key, value)) = model.pop_first() {
                assert_eq!(map.remove(&key), Some(value));
            }
            assert!(map.all().root.is_none());
        }
    }

    #[test]
    fn a_write_copies_no_more_than_the_nodes_on_its_way() {
        let mut map = Ordered::default();
        for key in 0..100_000_u32 {
            map.insert(key, u64::from(key));
        }
        let copy = map.all().clone();
        map.insert(50_000, 0);
        *map.get_mut(&50_001).unwrap() = 0;
        fn shared(a: &Arc<Node<u32, u64>>, b: &Arc<Node<u32, u64>>) -> usize {
            match (&**a, &**b) {
                _ if Arc::ptr_eq(a, b) => 0,
                (Node::Inner(a), Node::Inner(b)) => {
                    1 + a.iter().zip(b).map(|(a, b)| shared(&a.1, &b.1)).sum::<usize>()
                }
                _ => 1,
            }
        }
        let copied = shared(map.all().root.as_ref().unwrap(), copy.root.as_ref().unwrap());
        assert!(copied <= 5, "{copied} nodes");
        for key in [50_000, 50_001] {
            assert_eq!((copy.get(&key), map.all().get(&key)), (Some(&u64::from(key)), Some(&0)));
        }
        // Nor does a part: it shares the nodes within.
        let part = map.part(|key| if *key < 10 { Ordering::Less } else { Ordering::Equal });
        fn own(node: &Arc<Node<u32, u64>>) -> usize {
            match &**node {
                _ if Arc::strong_count(node) > 1 => 0,
                Node::Inner(children) => 1 + children.iter().map(|(_, child)| own(child)).sum::<usize>(),
                Node::Leaf(_) => 1,
            }
        }
        let made = own(part.root.as_ref().unwrap());
        assert!(made <= 8, "{made} nodes were made for a part of nearly all, on its two edges");
        drop(part);
        // Without a living copy nothing is copied.
        drop(copy);
        let root = Arc::as_ptr(map.all().root.as_ref().unwrap());
        map.insert(50_001, 0);
        *map.get_mut(&50_002).unwrap() = 0;
        assert_eq!(root, Arc::as_ptr(map.all().root.as_ref().unwrap()));
    }
}
