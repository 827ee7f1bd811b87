//! Power cuts: a file system in a file is shut down without flushing its log, as when a machine loses its power.

use rustix::ioctl;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use stead_flights::ConductError;
use stead_flights::conductor::Executioner;
use stead_flights::life::LifeError;

/// Bytes of the file system.
const IMAGE_BYTES: u64 = 1 << 30;

/// `EXT4_IOC_SHUTDOWN`: after it, every access to the file system fails.
const SHUTDOWN: ioctl::Opcode = ioctl::opcode::read::<u32>(b'X', 125);
/// Neither data nor the file system's log is flushed: all that is not on the disk yet is lost.
const NO_LOG_FLUSH: u32 = 2;

/// A mounted ext4 image whose power can be cut. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct PowerCut {
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
}

/// Power cuts are not possible on this machine.
#[derive(Debug)]
pub(crate) struct Skipped {
    pub(crate) reason: String,
}

impl PowerCut {
    /// Creates an image in a directory and mounts it.
    pub(crate) fn new(dir: &Path) -> Result<Self, Skipped> {
        if !rustix::process::geteuid().is_root() {
            return Err(Skipped { reason: "only root may mount a file system".to_owned() });
        }
        let (image, mount) = (dir.join("ext4.img"), dir.join("mount"));
        let make = || -> std::io::Result<()> {
            File::create(&image)?.set_len(IMAGE_BYTES)?;
            std::fs::create_dir(&mount)
        };
        make().map_err(|error| Skipped { reason: format!("no image can be created: {error}") })?;
        let mut power = Self { image, mount, mounted: false };
        run("mkfs.ext4", [OsStr::new("-q"), OsStr::new("-F"), power.image.as_os_str()], &[0])
            .and_then(|()| power.mount())
            .map_err(|reason| Skipped { reason })?;
        Ok(power)
    }

    pub(crate) fn mount_point(&self) -> &Path {
        &self.mount
    }

    fn mount(&mut self) -> Result<(), String> {
        run(
            "mount",
            [OsStr::new("-o"), OsStr::new("loop"), self.image.as_os_str(), self.mount.as_os_str()],
            &[0],
        )?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        run("umount", [self.mount.as_os_str()], &[0])?;
        self.mounted = false;
        Ok(())
    }

    /// Cuts the power: from then on every access to the file system fails.
    pub(crate) fn cut(&self) -> Result<(), String> {
        let directory = File::open(&self.mount).map_err(|error| format!("cannot open the mount: {error}"))?;
        shut_down(&directory).map_err(|error| format!("cannot shut down the file system: {error}"))
    }

    /// Replays the file system's log and checks for damage; then mounts it again.
    pub(crate) fn power_on(&mut self) -> Result<(), String> {
        self.unmount()?;
        // Exit code 1 means that the log was replayed.
        run("e2fsck", [OsStr::new("-p"), self.image.as_os_str()], &[0, 1])?;
        run("e2fsck", [OsStr::new("-f"), OsStr::new("-n"), self.image.as_os_str()], &[0])?;
        self.mount()
    }
}

impl Executioner for PowerCut {
    fn end(&mut self, kill: &mut dyn FnMut() -> Result<(), LifeError>) -> Result<(), ConductError> {
        self.cut().map_err(ConductError::Executioner)?;
        kill()?;
        self.power_on().map_err(ConductError::Executioner)
    }
}

impl Drop for PowerCut {
    fn drop(&mut self) {
        if self.mounted
            && let Err(reason) = self.unmount()
        {
            eprintln!("{} stays mounted: {reason}", self.mount.display());
        }
    }
}

#[allow(unsafe_code)]
fn shut_down(directory: &File) -> rustix::io::Result<()> {
    // SAFETY: the kernel reads one u32 through the pointer that `Setter` gives it, whatever the opcode's direction says,
    // and writes nothing.
    unsafe { ioctl::ioctl(directory, ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
}

fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>, good: &[i32]) -> Result<(), String> {
    // A user's search path may lack the directories of these programs.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    match output.status.code() {
        Some(code) if good.contains(&code) => Ok(()),
        _ => {
            let text = [output.stdout, output.stderr].concat();
            Err(format!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&text).trim()))
        }
    }
}
