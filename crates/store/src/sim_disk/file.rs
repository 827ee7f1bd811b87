//! An open file of the simulated disk.

use super::inode::Inode;
use super::state::{Crashed, Inner, held};
use crate::disk::DiskFile;
use std::io;
use std::sync::{Arc, Mutex};

pub(super) struct SimFile {
    pub(super) inner: Arc<Mutex<Inner>>,
    pub(super) id: u64,
    pub(super) generation: u64,
    pub(super) is_read: bool,
}

impl SimFile {
    fn check_write(&self) -> io::Result<()> {
        if self.is_read { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }

    /// Runs one operation on the file, which must still be open.
    fn with<T>(
        &self,
        bytes: usize,
        sync: bool,
        operation: impl FnOnce(&mut Inner, u64, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = held(&self.inner);
        let begun = inner.begin(bytes, sync)?;
        if inner.generation != self.generation {
            return Err(io::Error::other(Crashed));
        }
        let result = operation(&mut inner, self.id, begun.crash);
        inner.end_with(begun, result)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut inner = held(&self.inner);
        if inner.generation != self.generation {
            return;
        }
        let id = self.id;
        if let Some(inode) = inner.inodes.get_mut(&id) {
            inode.handles -= 1;
            if inode.handles == 0 {
                inner.collect();
            }
        }
    }
}

fn inode(inner: &mut Inner, id: u64) -> io::Result<&mut Inode> {
    inner.inodes.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(buf.len(), false, |inner, id, _| {
            inner.fail(|faults| &mut faults.reads)?;
            let data = &inode(inner, id)?.data;
            let start = usize::try_from(offset).map_err(io::Error::other)?.min(data.len());
            let read = buf.len().min(data.len() - start);
            buf[..read].copy_from_slice(&data[start..start + read]);
            Ok(read)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_write()?;
        self.with(bytes.len(), false, |inner, id, _| {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            let end = offset.checked_add(bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
            let more = end.saturating_sub(inode(inner, id)?.data.len());
            if more > 0 {
                inner.check_room(more)?;
            }
            if let Err(error) = inner.fail(|faults| &mut faults.writes) {
                let written = inner.rng.usize(..=bytes.len());
                inode(inner, id)?.write(&bytes[..written], offset);
                return Err(error);
            }
            inode(inner, id)?.write(bytes, offset);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(0, false, |inner, id, _| Ok(inode(inner, id)?.data.len() as u64))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.check_write()?;
        self.with(usize::try_from(len).map_err(io::Error::other)?, false, |inner, id, _| {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let more = len.saturating_sub(inode(inner, id)?.data.len());
            if more > 0 {
                inner.check_room(more)?;
                inner.fail(|faults| &mut faults.writes)?;
                inode(inner, id)?.resize(len);
            }
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.check_write()?;
        self.with(0, false, |inner, id, _| {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let more = len.saturating_sub(inode(inner, id)?.data.len());
            if more > 0 {
                inner.check_room(more)?;
            }
            inode(inner, id)?.resize(len);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(0, true, |inner, id, crash| {
            if let Err(error) = inner.fail_sync() {
                for undo in inode(inner, id)?.undo.values_mut() {
                    undo.forgotten = true;
                }
                return Err(error);
            }
            // A crash during the sync finds it done or not.
            if !(crash && inner.rng.bool()) {
                inode(inner, id)?.sync();
            }
            Ok(())
        })
    }
}
