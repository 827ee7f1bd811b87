//! The checks of what is decoded: bytes of another node give an error, and never a value that the protocol could not have made.
//!
//! No length is believed: a list grows with the elements that are read.

use super::epoch::EpochRecord;
use super::history::{History, RawHistory};
use super::table::{EpochTable, LogPoint, Losses};
use crate::commit_tracker::EpochConfig;
use crate::durability::Durability;
use crate::ids::{Epoch, Generation, Index, Life, Micros, ReplicaId};
use minicbor::Decode;
use minicbor::decode::{Decoder, Error};
use std::collections::BTreeMap;

#[derive(Decode)]
struct RawPoint {
    #[n(0)]
    epoch: Epoch,
    #[n(1)]
    index: Index,
}

impl<'b, C> Decode<'b, C> for LogPoint {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        let RawPoint { epoch, index } = d.decode_with(context)?;
        if epoch > Epoch::MAX || index > Index::MAX {
            return Err(Error::message("an entry has an epoch or index that no log reaches"));
        }
        Ok(Self { epoch, index })
    }
}

#[derive(Decode)]
struct RawTable {
    #[n(0)]
    base: LogPoint,
    #[n(1)]
    lasts: Vec<LogPoint>,
}

impl<'b, C> Decode<'b, C> for EpochTable {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        let RawTable { base, lasts } = d.decode_with(context)?;
        Self::parse(base, lasts).ok_or_else(|| Error::message("the epochs of a log do not follow each other"))
    }
}

#[derive(Decode)]
struct RawConfig {
    #[n(0)]
    epoch: Epoch,
    #[n(1)]
    members: Vec<ReplicaId>,
    #[n(2)]
    acks: usize,
    #[n(3)]
    primary: ReplicaId,
    /// Missing in records of older versions.
    #[n(4)]
    #[cbor(default)]
    durability: Durability,
}

impl<'b, C> Decode<'b, C> for EpochConfig {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        let RawConfig { epoch, members, acks, primary, durability } = d.decode_with(context)?;
        if epoch > Epoch::MAX || members.len() > Self::MEMBERS_MAX {
            return Err(Error::message("an epoch has a number or members that none reaches"));
        }
        Self::parse(epoch, members, acks, primary)
            .map(|config| config.with_durability(durability))
            .map_err(|_| Error::message("the configuration of an epoch contradicts itself"))
    }
}

#[derive(Decode)]
struct RawRecord {
    #[n(0)]
    config: EpochConfig,
    #[n(1)]
    life: Life,
    #[n(2)]
    lease: Micros,
    #[n(3)]
    generation: Generation,
    #[n(4)]
    base: LogPoint,
    #[n(5)]
    losses: Losses,
    /// `None` of an older version, which does not know it.
    #[n(6)]
    earlier: Option<BTreeMap<ReplicaId, Life>>,
}

impl<'b, C> Decode<'b, C> for EpochRecord {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        let RawRecord { config, life, lease, generation, base, losses, earlier } = d.decode_with(context)?;
        if base.epoch >= config.epoch() || losses.iter().any(|last| last.epoch >= config.epoch()) {
            return Err(Error::message("an epoch begins behind a later one"));
        }
        if lease == Micros(0) && config.is_asynchronous() {
            return Err(Error::message("an epoch answers early without a lease"));
        }
        let earlier = earlier.unwrap_or_else(|| Self::unknown_past(config.primary()));
        Ok(Self { config, life, lease, generation, base, losses, earlier })
    }
}

impl<'b, C> Decode<'b, C> for History {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, Error> {
        let raw: RawHistory = d.decode_with(context)?;
        Self::parse(raw).ok_or_else(|| Error::message("the epochs of a shard do not follow each other"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{decode_value, encode_value};
    use crate::replication::epoch::SealAnswer;
    use crate::replication::history::Takeover;
    use minicbor::Encode;
    use std::fmt::Debug;

    fn at(epoch: u64, index: u64) -> LogPoint {
        LogPoint { epoch: Epoch(epoch), index: Index(index) }
    }

    fn answer(replica: u64) -> SealAnswer {
        let mut table = EpochTable::new(at(1, 7));
        [at(1, 8), at(3, 9)].into_iter().for_each(|point| table.push(point));
        SealAnswer {
            replica: ReplicaId(replica),
            life: Life(2),
            epoch: Epoch(4),
            table,
            active: Epoch(3),
            is_folding: false,
        }
    }

    fn history() -> History {
        let config = |epoch| {
            EpochConfig::parse(Epoch(epoch), vec![ReplicaId(1), ReplicaId(2)], 1, ReplicaId(1)).unwrap()
        };
        let mut history = History::new(config(3), Life(1), Micros(9));
        let (config, seals) = (config(4), vec![answer(1)]);
        let takeover = Takeover { expected: Epoch(3), config, life: Life(2), lease: Micros(9), seals };
        history.begin(&takeover).unwrap();
        history
    }

    fn returns<T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug>(value: &T) {
        assert_eq!(&decode_value::<T>(&encode_value(value)).unwrap(), value);
    }

    #[test]
    fn what_is_encoded_returns() {
        returns(&answer(1));
        returns(&history());
        returns(history().newest());
    }

    #[test]
    fn an_answer_of_an_older_version_has_its_state() {
        let mut bytes = encode_value(&SealAnswer { is_folding: true, ..answer(1) }).to_vec();
        // An array of one element less.
        assert_eq!((bytes[0], bytes.pop()), (0x86, Some(0xf5)));
        bytes[0] = 0x85;
        assert_eq!(decode_value::<SealAnswer>(&bytes).unwrap(), answer(1));
    }

    #[test]
    fn what_no_log_could_be_is_refused() {
        let table = |base: LogPoint, lasts: &[LogPoint]| {
            decode_value::<EpochTable>(&encode_value(&(base, lasts.to_vec()))).is_ok()
        };
        assert!(table(at(1, 1), &[at(1, 2), at(2, 3)]));
        assert!(!table(at(1, 1), &[at(1, 1)]), "behind its base");
        assert!(!table(at(2, 1), &[at(1, 2)]), "an epoch falls");
        assert!(!table(at(1, 1), &[at(2, 3), at(2, 4)]), "an epoch twice");
        assert!(!table(at(1, 1), &[at(2, 3), at(3, 3)]), "an index twice");
        assert!(!table(at(1, u64::MAX), &[]), "no next index");
        let config = |members: &[u64], acks: usize| {
            let members: Vec<ReplicaId> = members.iter().copied().map(ReplicaId).collect();
            decode_value::<EpochConfig>(&encode_value(&(Epoch(1), members, acks, ReplicaId(1)))).is_ok()
        };
        assert!(config(&[1, 2], 2));
        assert!(!config(&[], 1) && !config(&[1, 1], 1) && !config(&[2], 1) && !config(&[1], 2));
        let record = |base: LogPoint, lost: u64, lease: u64| {
            let config =
                EpochConfig::parse(Epoch(3), [1, 2, 3].map(ReplicaId).to_vec(), 1, ReplicaId(1)).unwrap();
            let mut losses = Losses::default();
            losses.record(Epoch(lost), Index(1));
            let (life, lease, generation) = (Life(1), Micros(lease), Generation(0));
            decode_value::<EpochRecord>(&encode_value(&EpochRecord {
                config,
                life,
                lease,
                generation,
                base,
                losses,
                earlier: EpochRecord::unknown_past(ReplicaId(1)),
            }))
            .is_ok()
        };
        assert!(record(at(2, 5), 2, 1));
        assert!(!record(at(3, 5), 2, 1), "behind an entry of its own");
        assert!(!record(at(2, 5), 3, 1), "its own losses");
        assert!(!record(at(2, 5), 2, 0), "it answers early without a lease");
        let many: Vec<u64> = (1..=EpochConfig::MEMBERS_MAX as u64 + 1).collect();
        assert!(!config(&many, 1));
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let whole = encode_value(&history());
        for _ in 0..2_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            if let Ok(history) = decode_value::<History>(&bytes) {
                returns(&history);
            }
        }
    }
}
