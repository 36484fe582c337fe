//! Image files as block devices, for as long as something is mounted from them.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::SysError;

const CONTROL: &str = "/dev/loop-control";
const LOOP_CTL_REMOVE: libc::c_ulong = 0x4C81;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
/// Of all loop devices.
pub const MAJOR: u64 = 7;
/// ext4 counts itself in these.
const BLOCK_BYTES: u64 = 4096;
/// The device lets go of its file with the last mount of it.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Past the page cache of the file, so that nothing is cached twice.
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Somebody else may take the free device that we were told of, this often in a row.
const TRIES: usize = 64;
/// Those that the kernel makes by itself at boot stay.
const MADE_AT_BOOT: u32 = 8;

/// `struct loop_config` of the kernel.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// A device in use. Without a mount it is free again when this is dropped.
#[derive(Debug)]
pub struct Device {
    pub path: PathBuf,
    _held: OwnedFd,
}

/// Makes a device of an image file.
pub fn attach(image: &Path) -> Result<Device, SysError> {
    let file = File::options().read(true).write(true).open(image);
    let file = file.map_err(|source| SysError::io("open", image, source))?;
    // Two devices of one image would each write what the other does not know of.
    if let Some(number) = attached(image)
        && let Ok(held) = open(&path_of(number))
        && attached(image) == Some(number)
    {
        return Ok(Device { path: path_of(number), _held: held });
    }
    let control = open(Path::new(CONTROL))?;
    for _ in 0..TRIES {
        // SAFETY: takes no argument and gives a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = u32::try_from(number).map_err(|_| SysError::last("LOOP_CTL_GET_FREE"))?;
        let path = path_of(number);
        let held = match open(&path) {
            // Somebody else has just removed it.
            Err(error) if [libc::ENOENT, libc::ENXIO].contains(&error.errno()) => continue,
            opened => opened?,
        };
        if configure(&held, &file)? {
            return Ok(Device { path, _held: held });
        }
    }
    let source = std::io::ErrorKind::ResourceBusy.into();
    Err(SysError { call: "find a free loop device".to_owned(), source })
}

/// False: somebody else was faster.
fn configure(device: &OwnedFd, file: &File) -> Result<bool, SysError> {
    // SAFETY: plain integers, for which zero is a value.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = file.as_fd().as_raw_fd().unsigned_abs();
    config.info.flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    // SAFETY: the pointer is to a whole `struct loop_config` that outlives the call; the kernel takes a
    // reference of its own to the file.
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if ret >= 0 {
        return Ok(true);
    }
    let failed = SysError::last("LOOP_CONFIGURE");
    if failed.errno() == libc::EBUSY { Ok(false) } else { Err(failed) }
}

/// The device that an image is behind, wherever it is mounted.
pub fn attached(image: &Path) -> Option<u32> {
    let image = std::fs::canonicalize(image).ok()?;
    let about = std::fs::metadata(&image).ok()?;
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.map(|device| device.path()).find_map(|device| {
        let number = device.file_name()?.to_str()?.strip_prefix("loop")?.parse().ok()?;
        let file = std::fs::read_to_string(device.join("loop/backing_file")).ok()?;
        let is_named = Path::new(file.trim_end_matches('\n')) == image;
        (is_named && is_behind(number, &about)).then_some(number)
    })
}

/// Whether it is this very file that a device shows. Whoever made the device has named its file as it is called where he
/// is, which may be a namespace of his own.
fn is_behind(number: u32, about: &Metadata) -> bool {
    // Not to be asked is no answer: two devices of one image would destroy it.
    let Ok(device) = File::open(path_of(number)) else { return true };
    // SAFETY: plain integers, for which zero is a value.
    let mut info: Info = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `struct loop_info64` that outlives the call.
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    ret < 0 || (info.device, info.inode) == (about.dev(), about.ino())
}

pub fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Makes an image, the device of it and the ext4 that is mounted from that at `at` larger, while they are in use.
/// One that was made larger only in part is as small as its file system is.
pub fn grow(image: &File, at: &Path, bytes: u64) -> Result<(), SysError> {
    let failed = |source| SysError::io("grow", at, source);
    let before = image.metadata().map_err(failed)?.len();
    let number = super::device(at).map_or(0, |(_, minor)| u32::try_from(minor).unwrap_or(0));
    let device = open(&path_of(number))?;
    let notice = || {
        // SAFETY: takes no argument.
        let ret = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY, 0) };
        if ret < 0 { Err(SysError::last("LOOP_SET_CAPACITY")) } else { Ok(()) }
    };
    image.set_len(bytes).map_err(failed)?;
    notice()?;
    let grown = resize(at, bytes / BLOCK_BYTES);
    if grown.as_ref().is_err_and(|error| error.errno() == libc::EPERM) {
        // The file system has not been touched.
        image.set_len(before).map_err(failed)?;
        notice()?;
    }
    grown
}

fn resize(at: &Path, blocks: u64) -> Result<(), SysError> {
    let dir = File::open(at).map_err(|source| SysError::io("open", at, source))?;
    // SAFETY: the pointer is to the number of blocks, a u64.
    let ret = unsafe { libc::ioctl(dir.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if ret < 0 {
        Err(SysError::last(format!("EXT4_IOC_RESIZE_FS {}", at.display())))
    } else {
        Ok(())
    }
}

/// Removes a device that nothing uses any more, if it is not one of those that every machine has. One that is
/// still in use stays.
pub fn retire(number: u32) {
    let Ok(control) = open(Path::new(CONTROL)) else { return };
    if number >= MADE_AT_BOOT {
        // SAFETY: takes a number, and refuses what is in use.
        let _ = unsafe {
            libc::ioctl(control.as_raw_fd(), LOOP_CTL_REMOVE, libc::c_long::from(number))
        };
    }
}

fn open(path: &Path) -> Result<OwnedFd, SysError> {
    nix::fcntl::open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| SysError::nix(format!("open {}", path.display()), errno))
}
