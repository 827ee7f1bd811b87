//! A bundle: one object that holds sections of many shards, written as a stream.
//!
//! Layout, with all numbers little-endian: a header of 64 bytes; blocks, each with its shard, in the order of writing; an
//! index of all sections; a trailer of 48 bytes with the position of the index. The manifest has the checksum of the
//! index, and the index those of the blocks, so that a changed byte or an exchanged block is always detected.

use crate::checkpoint::store::{BlobReader, BlobStore, BlobWriter};
use crate::checkpoint::{Belonging, CheckpointError};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;
use stead_core::checkpointing::bundle::Hash;
pub use stead_core::checkpointing::bundle::{Author, BundleNames, BundleRef};
use stead_core::checkpointing::lineage::AddedSection;
use stead_core::ids::{CheckpointNumber, ClusterId, Incarnation, NodeId, ShardId};
use stead_core::record::RecordKey;
use stead_core::records::Records;
use stead_core::state::Header;
use xxhash_rust::xxh3::xxh3_128;

/// The version of the layout. A bundle of version 1 names no cluster, and is of its first node.
pub const BUNDLE_VERSION: u32 = 2;
/// Maximum number of bytes of a block; any record fits.
pub const BLOCK_MAX: usize = Records::VALUE_MAX + RecordKey::LEN_MAX + 1024;
/// Approximate number of bytes of the blocks into which larger pieces are cut, between records, by default.
pub const BLOCK_BYTES: usize = 1 << 20;
/// Maximum number of bytes of a bundle's index.
const INDEX_MAX: u64 = 1 << 30;

const MAGIC: &[u8; 8] = b"STEADBDL";
const TRAILER_MAGIC: &[u8; 8] = b"STEADEND";
const HEADER_LEN: usize = 64;
const TRAILER_LEN: usize = 48;
pub(crate) const BLOCK_HEADER_LEN: usize = 16;
/// Number of bytes of small blocks that are written together.
const WRITE_BYTES: usize = 256 << 10;

const _: () = assert!(BLOCK_MAX < u32::MAX as usize);

/// The origin of a bundle, as in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The life of a node that writes it.
    pub author: Author,
    /// The incarnation of the cluster.
    pub incarnation: Incarnation,
    /// The checkpoint for which it is written.
    pub number: CheckpointNumber,
}

/// The section of one shard in a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Section {
    /// Whether it holds every record of the shard, so that older sections do not count.
    #[n(0)]
    pub base: bool,
    /// The part's [`Header`], for a checkpoint's own bundle.
    #[n(1)]
    pub header: Option<Block>,
    /// The records, in the order in which they were written.
    #[n(2)]
    pub blocks: Vec<Block>,
}

impl Section {
    /// Returns the number of bytes of all blocks of records.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.len)).sum()
    }

    /// Returns its description for a lineage.
    #[must_use]
    pub fn added(&self) -> AddedSection {
        AddedSection { base: self.base, bytes: self.bytes() }
    }
}

/// The place of a block in its bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Block {
    /// The position of its header, in bytes from the bundle's start.
    #[n(0)]
    pub offset: u64,
    /// The number of bytes after the header.
    #[n(1)]
    pub len: u32,
    /// The checksum of its header and content.
    #[n(2)]
    pub crc: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum BlockKind {
    Header = 1,
    Records = 2,
}

/// A block with the facts in its header.
pub(crate) struct StoredBlock {
    shard: ShardId,
    kind: BlockKind,
    block: Block,
}

impl StoredBlock {
    /// Returns the position of its header, in bytes from the bundle's start.
    pub(crate) fn start(&self) -> u64 {
        self.block.offset
    }

    /// Returns the position at which its content ends.
    pub(crate) fn end(&self) -> u64 {
        self.block.offset + BLOCK_HEADER_LEN as u64 + u64::from(self.block.len)
    }
}

type Index = BTreeMap<ShardId, Section>;

/// Writes a bundle. It leaves nothing in the store if it is dropped before [`BundleWriter::finish`].
pub struct BundleWriter {
    out: Box<dyn BlobWriter>,
    name: String,
    node: NodeId,
    level: u32,
    prefix: [u8; HEADER_LEN],
    /// Number of bytes that are written or wait in `buffer`.
    at: u64,
    buffer: Vec<u8>,
    index: Index,
    block_bytes: usize,
}

impl BundleWriter {
    /// Begins a bundle under a new name.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn create(
        store: &dyn BlobStore,
        name: String,
        origin: Origin,
        level: u32,
    ) -> Result<Self, CheckpointError> {
        let Origin { author: Author { cluster, node, writer }, incarnation, number } = origin;
        let mut prefix = [0; HEADER_LEN];
        prefix[..8].copy_from_slice(MAGIC);
        prefix[8..12].copy_from_slice(&BUNDLE_VERSION.to_le_bytes());
        prefix[12..16].copy_from_slice(&level.to_le_bytes());
        prefix[16..24].copy_from_slice(&incarnation.0.to_le_bytes());
        prefix[24..32].copy_from_slice(&number.0.to_le_bytes());
        prefix[32..40].copy_from_slice(&writer.to_le_bytes());
        prefix[40..56].copy_from_slice(&cluster.0.to_le_bytes());
        prefix[56..60].copy_from_slice(&node.0.to_le_bytes());
        let crc = crc32fast::hash(&prefix[..60]);
        prefix[60..].copy_from_slice(&crc.to_le_bytes());
        let out = store.create(&name)?;
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        buffer.extend_from_slice(&prefix);
        let (at, index) = (HEADER_LEN as u64, Index::new());
        Ok(Self { out, name, node, level, prefix, at, buffer, index, block_bytes: BLOCK_BYTES })
    }

    /// Cuts larger pieces into blocks of about this many bytes from now on, at most [`BLOCK_BYTES`]; a longer record has a block of
    /// its own.
    pub fn set_block_bytes(&mut self, bytes: usize) {
        self.block_bytes = bytes.min(BLOCK_BYTES);
    }

    /// Returns the approximate number of bytes of a block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Returns the name of the bundle.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes a part's header. At most one for each shard.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn header(&mut self, header: &Header) -> Result<(), CheckpointError> {
        let bytes = minicbor::to_vec(header).expect("writing to a Vec never fails");
        let block = self.block(header.shard, BlockKind::Header, &bytes)?;
        self.index.entry(header.shard).or_default().header = Some(block);
        Ok(())
    }

    /// Notes that a shard's section has all of its records, so that older sections do not count.
    pub fn base(&mut self, shard: ShardId) {
        self.index.entry(shard).or_default().base = true;
    }

    /// Appends whole records to a shard's section. Sections of many shards may be written in turn.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    ///
    /// # Panics
    /// If `records` does not end with a whole record.
    pub fn records(&mut self, shard: ShardId, mut records: &[u8]) -> Result<(), CheckpointError> {
        while !records.is_empty() {
            let (block, rest) = records.split_at(block_len(records, self.block_bytes));
            let block = self.block(shard, BlockKind::Records, block)?;
            self.index.entry(shard).or_default().blocks.push(block);
            records = rest;
        }
        Ok(())
    }

    fn block(&mut self, shard: ShardId, kind: BlockKind, bytes: &[u8]) -> Result<Block, CheckpointError> {
        let len =
            u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= BLOCK_MAX || kind == BlockKind::Header);
        let Some(len) = len else {
            let reason =
                format!("the header of shard {shard} has {} bytes, over the limit of 4 GiB", bytes.len());
            return Err(CheckpointError::damaged(&self.name, reason));
        };
        let mut head = block_head(shard, kind, len);
        let crc = block_crc(&head, bytes);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        let block = Block { offset: self.at, len, crc };
        self.at += (BLOCK_HEADER_LEN + bytes.len()) as u64;
        self.buffer.extend_from_slice(&head);
        if self.buffer.len() + bytes.len() <= WRITE_BYTES {
            self.buffer.extend_from_slice(bytes);
        } else {
            self.flush()?;
            self.out.write(bytes)?;
        }
        Ok(block)
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        self.out.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Returns the number of bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Completes the bundle, which is durable when this returns. Returns its reference and its sections, for a manifest.
    ///
    /// # Errors
    /// [`CheckpointError::Store`].
    pub fn finish(mut self) -> Result<(BundleRef, BTreeMap<ShardId, Section>), CheckpointError> {
        let sections: Vec<_> = self.index.iter().collect();
        // The hash covers the header, so that a bundle cannot carry the index of another one.
        let mut hashed = self.prefix.to_vec();
        minicbor::encode(&sections, &mut hashed).expect("writing to a Vec never fails");
        let hash = Hash(xxh3_128(&hashed));
        let encoded = &hashed[HEADER_LEN..];
        CheckpointError::check_len(&self.name, encoded.len(), INDEX_MAX)?;
        let mut trailer = [0; TRAILER_LEN];
        trailer[..8].copy_from_slice(&self.at.to_le_bytes());
        trailer[8..16].copy_from_slice(&(encoded.len() as u64).to_le_bytes());
        trailer[16..32].copy_from_slice(&hash.0.to_le_bytes());
        let crc = crc32fast::hash(&trailer[..32]);
        trailer[32..36].copy_from_slice(&crc.to_le_bytes());
        trailer[40..].copy_from_slice(TRAILER_MAGIC);
        self.flush()?;
        self.out.write(encoded)?;
        self.out.write(&trailer)?;
        let bytes = self.at + (encoded.len() + TRAILER_LEN) as u64;
        self.out.finish()?;
        let Self { name, node, level, index, .. } = self;
        Ok((BundleRef { name, node, bytes, level, index: hash }, index))
    }
}

fn block_head(shard: ShardId, kind: BlockKind, len: u32) -> [u8; BLOCK_HEADER_LEN] {
    let mut head = [0; BLOCK_HEADER_LEN];
    head[..4].copy_from_slice(&shard.0.to_le_bytes());
    head[4] = kind as u8;
    head[8..12].copy_from_slice(&len.to_le_bytes());
    head
}

fn block_crc(head: &[u8; BLOCK_HEADER_LEN], content: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..12]);
    crc.update(content);
    crc.finalize()
}

/// Returns the bytes of whole records that the next block takes.
fn block_len(records: &[u8], most: usize) -> usize {
    if records.len() <= most {
        return records.len();
    }
    let mut at = 0;
    while let Some(head) = records.get(at..at + 6) {
        let key = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let value = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let end = at + 6 + key + value.saturating_sub(1);
        if at > 0 && end > most {
            return at;
        }
        at = end;
    }
    assert!(at == records.len(), "a piece of a section ends with a whole record");
    at
}

/// A bundle that is open for reading. Opening it checks everything except the blocks, which are checked when they are
/// read.
pub struct Bundle {
    name: String,
    reader: Box<dyn BlobReader>,
    number: CheckpointNumber,
    index: Index,
}

impl Bundle {
    /// Opens a bundle that a manifest refers to.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is damaged, or another bundle, or of another node or owner.
    pub fn open(
        store: &dyn BlobStore,
        wanted: &BundleRef,
        owner: Belonging,
    ) -> Result<Self, CheckpointError> {
        Self::open_as(store, &wanted.name, Some(wanted), owner)
    }

    /// Opens a bundle that no manifest refers to.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is missing, damaged, or of another owner.
    pub(crate) fn open_alone(
        store: &dyn BlobStore,
        name: &str,
        owner: Belonging,
    ) -> Result<Self, CheckpointError> {
        Self::open_as(store, name, None, owner)
    }

    fn open_as(
        store: &dyn BlobStore,
        name: &str,
        wanted: Option<&BundleRef>,
        owner: Belonging,
    ) -> Result<Self, CheckpointError> {
        let damaged = |reason: String| CheckpointError::damaged(name, reason);
        let reader = store.open(name)?;
        let size = reader.size();
        if let Some(wanted) = wanted.filter(|wanted| size != wanted.bytes) {
            return Err(damaged(format!("it has {size} bytes where the manifest says {}", wanted.bytes)));
        }
        let least = (HEADER_LEN + TRAILER_LEN) as u64;
        if size < least {
            return Err(damaged(format!("{size} bytes are less than a bundle's {least}")));
        }
        let mut prefix = [0; HEADER_LEN];
        reader.read_at(&mut prefix, 0)?;
        let (number, node) = check_prefix(name, &prefix, owner)?;
        if let Some(wanted) = wanted.filter(|wanted| node != wanted.node) {
            return Err(damaged(format!("it is of node {node} where the manifest says {}", wanted.node)));
        }
        let mut trailer = [0; TRAILER_LEN];
        reader.read_at(&mut trailer, size - TRAILER_LEN as u64)?;
        if trailer[40..] != *TRAILER_MAGIC
            || trailer[36..40] != [0; 4]
            || read_u32(&trailer, 32) != crc32fast::hash(&trailer[..32])
        {
            return Err(damaged("its trailer is invalid".to_owned()));
        }
        let (at, len) = (read_u64(&trailer, 0), read_u64(&trailer, 8));
        let end = at.checked_add(len).and_then(|end| end.checked_add(TRAILER_LEN as u64));
        if at < HEADER_LEN as u64 || len > INDEX_MAX || end != Some(size) {
            return Err(damaged(format!("its index is out of bounds: {len} bytes at {at} of {size}")));
        }
        let mut hashed = prefix.to_vec();
        hashed.resize(HEADER_LEN + len as usize, 0);
        reader.read_at(&mut hashed[HEADER_LEN..], at)?;
        let found = Hash(xxh3_128(&hashed));
        if let Some(wanted) = wanted.filter(|wanted| found != wanted.index) {
            return Err(damaged(format!(
                "its index has checksum {found} where the manifest says {}",
                wanted.index
            )));
        }
        if trailer[16..32] != found.0.to_le_bytes() {
            return Err(damaged(format!("its index has checksum {found}, which is not that of its trailer")));
        }
        let index = decode_index(&hashed[HEADER_LEN..], at).map_err(damaged)?;
        Ok(Self { name: name.to_owned(), reader, number, index })
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the checkpoint for which it was written.
    #[must_use]
    pub fn number(&self) -> CheckpointNumber {
        self.number
    }

    /// Returns the section of a shard.
    #[must_use]
    pub fn section(&self, shard: ShardId) -> Option<&Section> {
        self.index.get(&shard)
    }

    /// Returns all sections with their shards, in the order of these.
    pub fn sections(&self) -> impl Iterator<Item = (ShardId, &Section)> {
        self.index.iter().map(|(shard, section)| (*shard, section))
    }

    /// Hints that all of it will be read soon.
    pub fn read_ahead(&self) {
        self.reader.read_ahead();
    }

    /// Reads the header of a shard's part.
    ///
    /// # Errors
    /// [`CheckpointError`] if there is none or it is damaged.
    pub fn header(&self, shard: ShardId) -> Result<Header, CheckpointError> {
        let block = self.section(shard).and_then(|section| section.header);
        let Some(block) = block else {
            return Err(CheckpointError::damaged(&self.name, format!("it has no header of shard {shard}")));
        };
        let mut bytes = vec![0; BLOCK_HEADER_LEN + block.len as usize];
        self.reader.read_at(&mut bytes, block.offset)?;
        let content = self.check_block(shard, BlockKind::Header, &block, &bytes)?;
        let header: Result<Header, _> = stead_core::record::decode_value(content);
        match header {
            Ok(header) if header.shard == shard => Ok(header),
            Ok(header) => {
                let reason =
                    format!("the header of shard {} stands where that of {shard} should", header.shard);
                Err(CheckpointError::damaged(&self.name, reason))
            }
            Err(error) => {
                let reason = format!("the header of shard {shard} is invalid: {error}");
                Err(CheckpointError::damaged(&self.name, reason))
            }
        }
    }

    /// Returns all blocks, in the order of their positions.
    pub(crate) fn blocks(&self) -> Vec<StoredBlock> {
        let mut all = Vec::new();
        for (&shard, section) in &self.index {
            all.extend(section.header.map(|block| StoredBlock { shard, kind: BlockKind::Header, block }));
            let records = section.blocks.iter();
            all.extend(records.map(|&block| StoredBlock { shard, kind: BlockKind::Records, block }));
        }
        all.sort_unstable_by_key(StoredBlock::start);
        all
    }

    /// Checks a block that was read with its header.
    pub(crate) fn check(&self, stored: &StoredBlock, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.check_block(stored.shard, stored.kind, &stored.block, bytes).map(drop)
    }

    /// Fills `buf` with the bytes of the bundle from `offset` on.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), CheckpointError> {
        Ok(self.reader.read_at(buf, offset)?)
    }

    /// Checks a block of records that was read with its header. Returns its content.
    pub(crate) fn check_records<'b>(
        &self,
        shard: ShardId,
        block: &Block,
        bytes: &'b [u8],
    ) -> Result<&'b [u8], CheckpointError> {
        self.check_block(shard, BlockKind::Records, block, bytes)
    }

    fn check_block<'b>(
        &self,
        shard: ShardId,
        kind: BlockKind,
        block: &Block,
        bytes: &'b [u8],
    ) -> Result<&'b [u8], CheckpointError> {
        let mut head = block_head(shard, kind, block.len);
        let content = &bytes[BLOCK_HEADER_LEN..];
        let crc = block_crc(&head, content);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        if crc != block.crc || head != bytes[..BLOCK_HEADER_LEN] {
            let reason = format!("the block of shard {shard} at byte {} fails its checksum", block.offset);
            return Err(CheckpointError::damaged(&self.name, reason));
        }
        Ok(content)
    }
}

/// Checks the header of a bundle. Returns the checkpoint for which it was written, and the node.
fn check_prefix(
    name: &str,
    prefix: &[u8; HEADER_LEN],
    owner: Belonging,
) -> Result<(CheckpointNumber, NodeId), CheckpointError> {
    if prefix[..8] != *MAGIC {
        return Err(CheckpointError::damaged(name, "it is not a bundle"));
    }
    // Before the checksum: another version may have it elsewhere.
    let version = read_u32(prefix, 8);
    if !(1..=BUNDLE_VERSION).contains(&version) {
        let (found, known) = (u64::from(version), BUNDLE_VERSION);
        return Err(CheckpointError::Version { name: name.to_owned(), found, known });
    }
    if read_u32(prefix, 60) != crc32fast::hash(&prefix[..60]) {
        return Err(CheckpointError::damaged(name, "its header fails its checksum"));
    }
    let cluster = u128::from_le_bytes(prefix[40..56].try_into().expect("16 bytes"));
    let (cluster, node) = match version {
        1 => (None, NodeId::FIRST),
        _ => (Some(ClusterId(cluster)), NodeId(read_u32(prefix, 56))),
    };
    Belonging { cluster, incarnation: Incarnation(read_u64(prefix, 16)) }.check(name, owner)?;
    Ok((CheckpointNumber(read_u64(prefix, 24)), node))
}

/// Reads an index. Its blocks must be between the header and `end`, in order, and must not overlap.
fn decode_index(bytes: &[u8], end: u64) -> Result<Index, String> {
    let sections: Vec<(ShardId, Section)> =
        stead_core::record::decode_value(bytes).map_err(|error| format!("its index is invalid: {error}"))?;
    let mut index = Index::new();
    let mut all = Vec::new();
    for (shard, section) in sections {
        all.extend(section.header);
        all.extend_from_slice(&section.blocks);
        let ordered = section.blocks.is_sorted_by_key(|block| block.offset);
        if !ordered || section.blocks.iter().any(|block| block.len as usize > BLOCK_MAX) {
            return Err(format!("its index has impossible blocks for shard {shard}"));
        }
        if index.insert(shard, section).is_some() {
            return Err(format!("its index names shard {shard} twice"));
        }
    }
    all.sort_unstable_by_key(|block| block.offset);
    let mut free = HEADER_LEN as u64;
    for block in all {
        let next = block.offset.checked_add(BLOCK_HEADER_LEN as u64 + u64::from(block.len));
        match next {
            Some(next) if block.offset >= free && next <= end => free = next,
            _ => return Err(format!("its index has a block at the impossible offset {}", block.offset)),
        }
    }
    Ok(index)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
