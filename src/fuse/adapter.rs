//! One method per request: take it apart, call the tree, answer.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use crate::fuse::answer::{DOT, DOT_DOT, Dots, GENERATION, cached, caller, no_flush, nothing, token};
use crate::fuse::behind::Behind;
use crate::fuse::convert::{
    self, FOR_EVER, NOT_AT_ALL, Root, access, handle, handle_access, handle_alterations,
};
use crate::fuse::quiet::Quiet;
use crate::fuse::slow::{Lane, Slow, slow_if};
use crate::fuse::watch::begin;
use crate::metrics::Operation;
use crate::vfs::attr::SetAttributes;
use crate::vfs::copy::Place;
use crate::vfs::open::How;
use crate::vfs::read::Seek;
use crate::vfs::rename::Flavour;
use crate::vfs::write::Allocate;
use crate::vfs::xattr::{SetMode, is_made_up};
use crate::vfs::{Error, Vfs};

/// Largest read or write in one request.
const TRANSFER_BYTES_MAX: u32 = 1 << 20;

/// Requests in the background, such as reads ahead, that the kernel sends at a time: those of one file that is far away must
/// not hold up those of the others.
const BACKGROUND_MAX: u16 = 512;

/// The tree as `fuser` calls it.
#[derive(Clone)]
pub struct Adapter {
    pub(super) vfs: Arc<Vfs>,
    pub(super) root: Root,
    pub(super) quiet: Arc<Quiet>,
    pub(super) slow: Arc<Slow>,
    pub(super) behind: Behind,
}

impl Adapter {
    pub fn new(vfs: Arc<Vfs>) -> Adapter {
        let root = Root(vfs.options().subdir);
        Adapter { vfs, root, quiet: Arc::default(), slow: Arc::default(), behind: Behind::default() }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!("this kernel does not offer {wanted:?}");
            }
        }
        let _ = config.set_max_write(TRANSFER_BYTES_MAX);
        let _ = config.set_max_background(if self.far() { BACKGROUND_MAX } else { 64 });
        if self.vfs.passthrough() {
            if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
                // 1: files below may not be on a stacked file system themselves, and an overlay may have its lower layer here.
                let _ = config.set_max_stack_depth(1);
            } else {
                self.vfs.disable_passthrough("this kernel does not offer it (6.9 does)".to_owned());
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer = move |this: &Adapter, name: &OsStr| {
            let _under_way = begin(Operation::Lookup, parent);
            let parent = this.root.ino(parent);
            match this.vfs.lookup(parent, name.as_bytes()) {
                // Only requests can make the name, so the kernel may remember that it is not there.
                Ok(None) => reply.entry(&FOR_EVER, &nothing(), GENERATION),
                Ok(Some(attributes)) => this.entry("lookup", parent, Ok(attributes), reply),
                Err(error) => reply.error(this.failed("lookup", parent, &error)),
            }
        };
        if self.stages_far() {
            let name = name.to_owned();
            return self.answer(Lane::Slow, move |this| answer(this, &name));
        }
        answer(self, name);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        let _under_way = begin(Operation::Forget, ino);
        self.vfs.forget(self.root.ino(ino));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(slow_if(self.stages_far()), move |this| {
            let _under_way = begin(Operation::Getattr, ino);
            let ino = this.root.ino(ino);
            this.attr("getattr", ino, this.vfs.attributes(ino), reply);
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(convert::set_time), mtime.map(convert::set_time));
        let set = SetAttributes { mode, uid, gid, size, atime, mtime };
        let nothing_set = mode.is_none() && uid.is_none() && gid.is_none() && size.is_none();
        let nothing_set = nothing_set && atime.is_none() && mtime.is_none() && ctime.is_none();
        let caller = caller(req);
        let (node, ino) = (ino, self.root.ino(ino));
        let lane = if size.is_some() { self.to_stage(|| self.far()) } else { self.to_change(ino) };
        self.answer(lane, move |this| {
            let _under_way = begin(Operation::Setattr, node);
            let found = if nothing_set {
                this.vfs.clear_set_id_bits(ino)
            } else {
                this.vfs.set_attributes(&caller, ino, &set)
            };
            this.attr("setattr", ino, found, reply);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _under_way = begin(Operation::Readlink, ino);
        let ino = self.root.ino(ino);
        match self.vfs.read_link(ino) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.failed("readlink", ino, &error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _under_way = begin(Operation::Mknod, parent);
        let parent = self.root.ino(parent);
        let made = match convert::kind(mode) {
            Some(kind) => {
                self.vfs.make_node(&caller(req), parent, name.as_bytes(), (kind, rdev), mode, umask)
            }
            None => Err(Error::Invalid("a file type")),
        };
        self.entry("mknod", parent, self.named(made), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _under_way = begin(Operation::Mkdir, parent);
        let parent = self.root.ino(parent);
        let made = self.vfs.make_directory(&caller(req), parent, name.as_bytes(), mode, umask);
        self.entry("mkdir", parent, self.named(made), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.answer(slow_if(self.stages_far()), move |this| {
            let _under_way = begin(Operation::Unlink, parent);
            let parent = this.root.ino(parent);
            this.empty("unlink", parent, this.named(this.vfs.unlink(parent, name.as_bytes())), reply);
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _under_way = begin(Operation::Rmdir, parent);
        let parent = self.root.ino(parent);
        let done = self.vfs.remove_directory(parent, name.as_bytes());
        self.empty("rmdir", parent, self.named(done), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _under_way = begin(Operation::Symlink, parent);
        let parent = self.root.ino(parent);
        let target = target.as_os_str().as_bytes();
        let made = self.vfs.make_symlink(&caller(req), parent, link_name.as_bytes(), target);
        self.entry("symlink", parent, self.named(made), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flavour = if flags.is_empty() {
            Flavour::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            Flavour::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            Flavour::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let (from, to) = (self.root.ino(parent), self.root.ino(newparent));
        let lane = self.to_rename((from, &name), (to, &newname));
        self.answer(lane, move |this| {
            let _under_way = begin(Operation::Rename, parent);
            let done = this.vfs.rename((from, name.as_bytes()), (to, newname.as_bytes()), flavour);
            this.empty("rename", from, this.named(done), reply);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let newname = newname.to_owned();
        self.answer(slow_if(self.stages_far()), move |this| {
            let _under_way = begin(Operation::Link, ino);
            let ino = this.root.ino(ino);
            let made = this.vfs.link(ino, this.root.ino(newparent), newname.as_bytes());
            this.entry("link", ino, this.named(made), reply);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (access, caller) = (access(flags.0), caller(req));
        let (node, ino) = (ino, self.root.ino(ino));
        let lane = match access.write || access.truncate {
            true => self.to_stage(|| self.far()),
            false => self.where_staged(ino, || self.far() && self.vfs.open_waits(ino)),
        };
        self.answer(lane, move |this| {
            let _under_way = begin(Operation::Open, node);
            let register = |file: BorrowedFd<'_>| reply.open_backing(file).map(token);
            match this.vfs.open(&caller, ino, access, &register) {
                Ok(opened) => match &opened.how {
                    How::Cached => reply.opened(handle(access, &opened), cached(&opened)),
                    How::Passthrough(id) => match id.downcast_ref::<BackingId>() {
                        Some(id) => reply.opened_passthrough(handle(access, &opened), no_flush(&opened), id),
                        None => reply.error(Errno::EIO),
                    },
                },
                Err(error) => reply.error(this.failed("open", ino, &error)),
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (access, caller, name) = (access(flags), caller(req), name.to_owned());
        self.answer(self.to_stage(|| self.far() && self.vfs.is_backlogged()), move |this| {
            let _under_way = begin(Operation::Create, parent);
            let parent = this.root.ino(parent);
            let register = |file: BorrowedFd<'_>| reply.open_backing(file).map(token);
            match this.vfs.create(&caller, parent, name.as_bytes(), (mode, umask), access, &register) {
                Ok((attributes, opened)) => {
                    let (attr, ttl) = this.root.attr(&attributes);
                    match &opened.how {
                        How::Cached => {
                            reply.created(&ttl, &attr, GENERATION, handle(access, &opened), cached(&opened))
                        }
                        How::Passthrough(id) => match id.downcast_ref::<BackingId>() {
                            Some(id) => {
                                let flags = no_flush(&opened);
                                reply.created_passthrough(
                                    &ttl,
                                    &attr,
                                    GENERATION,
                                    handle(access, &opened),
                                    flags,
                                    id,
                                );
                            }
                            None => reply.error(Errno::EIO),
                        },
                    }
                }
                Err(error) => reply.error(this.failed("create", parent, &error)),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (node, ino) = (ino, self.root.ino(ino));
        let lane = self.where_staged(ino, || self.far() && self.vfs.reads_far(ino));
        self.answer(lane, move |this| {
            let _under_way = begin(Operation::Read, node);
            let mut buffer = vec![0; size as usize];
            match this.vfs.read(ino, handle_alterations(fh), offset, &mut buffer) {
                Ok(n) => {
                    reply.data(&buffer[..n]);
                    if lane != Lane::Here {
                        this.behind.was_read(node, offset, n, || this.vfs.is_kept_for(ino));
                    }
                }
                Err(error) => reply.error(this.failed("read", ino, &error)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let write = move |this: &Adapter, data: &[u8]| {
            let _under_way = begin(Operation::Write, ino);
            let ino = this.root.ino(ino);
            match this.vfs.write(ino, offset, data, kill) {
                Ok(()) => reply.written(data.len() as u32),
                Err(error) => reply.error(this.failed("write", ino, &error)),
            }
        };
        match self.to_stage(|| self.far() && self.vfs.write_waits(self.root.ino(ino))) {
            Lane::Here => write(self, data),
            lane => {
                // The bytes are in a buffer that is wanted for the next request.
                let data = data.to_vec();
                self.answer(lane, move |this| write(this, &data));
            }
        }
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let write = handle_access(fh).write;
        let lane = if write && self.far() { Lane::Endless } else { Lane::Here };
        self.answer(lane, move |this| {
            let _under_way = begin(Operation::Flush, ino);
            let ino = this.root.ino(ino);
            let done = if write { this.vfs.flush(ino) } else { Ok(()) };
            this.empty("close", ino, done, reply);
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let lane = self.where_staged(self.root.ino(ino), || self.far() && handle_access(fh).write);
        self.answer(lane, move |this| {
            let _under_way = begin(Operation::Release, ino);
            this.vfs.release(this.root.ino(ino), handle_access(fh));
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.answer(self.where_staged(self.root.ino(ino), || self.far()), move |this| {
            let _under_way = begin(Operation::Fsync, ino);
            let ino = this.root.ino(ino);
            this.empty("fsync", ino, this.vfs.fsync(ino), reply);
        });
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _under_way = begin(Operation::Fsyncdir, ino);
        self.empty("fsync", self.root.ino(ino), self.vfs.sync_index(), reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _under_way = begin(Operation::Opendir, ino);
        // Listings need no handle. The kernel asks once, and from then on lists without opening and keeps what it listed.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _under_way = begin(Operation::Readdir, ino);
        let ino = self.root.ino(ino);
        let root = self.root;
        let mut dots = Dots::from(offset);
        let mut full = false;
        while let Some((cookie, name)) = dots.next() {
            let of = if cookie == DOT { Ok(ino) } else { self.vfs.parent_of(ino) };
            let of = match of {
                Ok(of) => of,
                Err(error) => return reply.error(self.failed("readdir", ino, &error)),
            };
            full = full || reply.add(root.node(of), cookie, FileType::Directory, name);
        }
        if full {
            return reply.ok();
        }
        let listed = self.vfs.list(ino, offset.max(DOT_DOT), |entry| {
            let inode = &entry.attributes.inode;
            let name = OsStr::from_bytes(&entry.name);
            !reply.add(root.node(inode.ino), entry.cookie, convert::file_type(inode.kind), name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.failed("readdir", ino, &error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.answer(slow_if(self.stages_far()), move |this| {
            let _under_way = begin(Operation::Readdirplus, ino);
            let ino = this.root.ino(ino);
            let root = this.root;
            let mut dots = Dots::from(offset);
            let mut full = false;
            while let Some((cookie, name)) = dots.next() {
                let of = if cookie == DOT { Ok(ino) } else { this.vfs.parent_of(ino) };
                match of.and_then(|of| this.vfs.attributes(of)) {
                    Ok(attributes) => {
                        let (attr, _) = root.attr(&attributes);
                        full = full || reply.add(attr.ino, cookie, name, &NOT_AT_ALL, &attr, GENERATION);
                    }
                    Err(error) => return reply.error(this.failed("readdir", ino, &error)),
                }
            }
            if full {
                return reply.ok();
            }
            let listed = this.vfs.list(ino, offset.max(DOT_DOT), |entry| {
                let (attr, ttl) = root.attr(&entry.attributes);
                let name = OsStr::from_bytes(&entry.name);
                !reply.add(attr.ino, entry.cookie, name, &ttl, &attr, GENERATION)
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(this.failed("readdir", ino, &error)),
            }
        });
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        let _under_way = begin(Operation::Statfs, ino);
        let space = self.vfs.space();
        let blocks = |bytes: u64| bytes / BLOCK;
        reply.statfs(
            blocks(space.capacity),
            blocks(space.free),
            blocks(space.available),
            space.inodes,
            space.inodes_free,
            BLOCK as u32,
            crate::vfs::NAME_BYTES_MAX as u32,
            BLOCK as u32,
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _under_way = begin(Operation::Setxattr, ino);
        let ino = self.root.ino(ino);
        let mode = match flags {
            libc::XATTR_CREATE => SetMode::Create,
            libc::XATTR_REPLACE => SetMode::Replace,
            flags if flags == libc::XATTR_CREATE | libc::XATTR_REPLACE => SetMode::Neither,
            _ => SetMode::Any,
        };
        let done = self.vfs.set_xattr(&caller(req), ino, name.as_bytes(), value, mode);
        self.empty("setxattr", ino, done, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        let lane = match is_made_up(name.as_bytes()) {
            true => self.where_staged(self.root.ino(ino), || self.far()),
            false => Lane::Here,
        };
        self.answer(lane, move |this| {
            let _under_way = begin(Operation::Getxattr, ino);
            let ino = this.root.ino(ino);
            this.xattr("getxattr", ino, size, this.vfs.get_xattr(ino, name.as_bytes()), reply);
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _under_way = begin(Operation::Listxattr, ino);
        let ino = self.root.ino(ino);
        let list = self.vfs.list_xattrs(&caller(req), ino).map(|names| {
            let mut list = Vec::new();
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            list
        });
        self.xattr("listxattr", ino, size, list, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _under_way = begin(Operation::Removexattr, ino);
        let ino = self.root.ino(ino);
        self.empty("removexattr", ino, self.vfs.remove_xattr(ino, name.as_bytes()), reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = caller(req);
        self.answer(self.to_stage(|| self.far()), move |this| {
            let _under_way = begin(Operation::Fallocate, ino);
            let ino = this.root.ino(ino);
            let done = match Allocate::from_mode(mode) {
                Some(how) => this.vfs.allocate(&caller, ino, offset, length, how),
                None => Err(Error::Unsupported("this mode of fallocate")),
            };
            this.empty("fallocate", ino, done, reply);
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.answer(self.where_staged(self.root.ino(ino), || self.far()), move |this| {
            let _under_way = begin(Operation::Lseek, ino);
            let ino = this.root.ino(ino);
            match this.vfs.seek(ino, offset, what) {
                Ok(offset) => reply.offset(offset as i64),
                Err(error) => reply.error(this.failed("lseek", ino, &error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let from = Place { ino: self.root.ino(ino_in), offset: offset_in };
        let to = Place { ino: self.root.ino(ino_out), offset: offset_out };
        let caller = caller(req);
        self.answer(self.to_stage(|| self.far()), move |this| {
            let _under_way = begin(Operation::CopyFileRange, ino_out);
            let in_doubt = || this.vfs.refuse_doubtful(from.ino, handle_alterations(fh_in));
            let copied = in_doubt().and_then(|()| this.vfs.copy_range(&caller, from, to, len));
            match copied.and_then(|copied| in_doubt().map(|()| copied)) {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(this.failed("copy", to.ino, &error)),
            }
        });
    }
}
