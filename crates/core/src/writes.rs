//! The writes of one call: each record once, with its last value, in the order of the first writes.

use crate::blob::Blob;
use crate::entry::Write;
use crate::record::RecordKey;
use std::collections::BTreeMap;

/// Number of writes up to which they are searched one by one: most calls make fewer.
const FEW: usize = 16;

#[derive(Default)]
pub(crate) struct Writes {
    list: Vec<Write>,
    /// Position of each record in `list`; empty while there are few.
    index: BTreeMap<RecordKey, usize>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<Write> {
        self.list
    }

    pub(crate) fn get(&self, key: &RecordKey) -> Option<&Write> {
        self.find(key).map(|at| &self.list[at])
    }

    /// Writes a record, or deletes it. The last write of a record is the only one that counts.
    pub(crate) fn set(&mut self, key: RecordKey, value: Option<Blob>) {
        match self.find(&key) {
            Some(at) => self.list[at].value = value,
            None => {
                if self.list.len() == FEW {
                    self.index = self.list.iter().map(|write| write.key.clone()).zip(0..).collect();
                }
                if self.list.len() >= FEW {
                    self.index.insert(key.clone(), self.list.len());
                }
                self.list.push(Write { key, value });
            }
        }
    }

    /// Returns the writes of the records from a key on, in the order of their keys.
    pub(crate) fn from<'a>(&'a self, key: &RecordKey) -> Box<dyn Iterator<Item = &'a Write> + 'a> {
        if self.list.len() > FEW {
            return Box::new(self.index.range(key.clone()..).map(|(_, &at)| &self.list[at]));
        }
        let mut found: Vec<&Write> = self.list.iter().filter(|write| write.key >= *key).collect();
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Box::new(found.into_iter())
    }

    fn find(&self, key: &RecordKey) -> Option<usize> {
        if self.list.len() > FEW {
            return self.index.get(key).copied();
        }
        self.list.iter().rposition(|write| write.key == *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_writes_are_found_alike_and_keep_their_order() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let mut writes = Writes::default();
            let mut model: Vec<Write> = Vec::new();
            for _ in 0..rng.usize(..4 * FEW) {
                let key = RecordKey::cell("p", &[rng.u8(..40)]);
                let value = rng.bool().then(|| Blob::from([rng.u8(..)].as_slice()));
                writes.set(key.clone(), value.clone());
                match model.iter_mut().find(|write| write.key == key) {
                    Some(write) => write.value = value,
                    None => model.push(Write { key, value }),
                }
                let from = RecordKey::cell("p", &[rng.u8(..40)]);
                assert_eq!(writes.get(&from), model.iter().find(|write| write.key == from), "seed {seed}");
                let mut sorted: Vec<&Write> = model.iter().filter(|write| write.key >= from).collect();
                sorted.sort_by(|a, b| a.key.cmp(&b.key));
                assert_eq!(writes.from(&from).collect::<Vec<_>>(), sorted, "seed {seed}");
            }
            assert_eq!(writes.into_vec(), model, "seed {seed}");
        }
    }
}
