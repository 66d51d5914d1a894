//! The order of a daemon's life: check everything, change nothing; then lock, open the engine, answer the kernel's first
//! message, attach the mount, close the world outside, serve, tidy.
//!
//! Invariants: no thread before the fork nor before the change of root; no path is opened after it; whatever fails before
//! `attach` leaves no mount, and whatever fails after it takes the mount off again.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use crate::daemon::clone::clone_all;
use crate::daemon::control::{Control, Office, list_of};
use crate::daemon::door::Doors;
use crate::daemon::keeper::Keeper;
use crate::daemon::launch::{Ready, in_background};
use crate::daemon::logger::{self, Later};
use crate::daemon::means::{Means, Mount};
use crate::daemon::mount::source;
use crate::daemon::mountpoint::{self, Mountpoint, device_number};
use crate::daemon::overlap::{self, Ground, Overlaps};
use crate::daemon::request::MountRequest;
use crate::daemon::resolve::{self, Checked, Resolved, describe};
use crate::daemon::sandbox::Sandbox;
use crate::daemon::stdio::Null;
use crate::daemon::table::MountTable;
use crate::daemon::wire::Facts;
use crate::daemon::{attached, door, limits, lock, namespace, owners_aside, signals, unmapped, watch};
use crate::fuse::session::{Audience, Connection, connect};
use crate::fuse::{Adapter, Settings, awake, near};
use crate::sys::process;
use crate::union::{BranchSource, Layout, Union};

/// Mounts what `request` says and serves it until it is unmounted. To be called first of all in a program: it closes every
/// descriptor but 0 to 2, and splits the process.
///
/// Returns, in the process that was called, 0 once the mount answers; 1 if there is none, with the reason on standard
/// error. In the foreground (`-f`, `-d`, or as process 1) it returns when the union has ended.
pub fn run(mut request: MountRequest) -> ExitCode {
    process::reset_signals();
    process::bound_arenas(ARENAS);
    process::close_others(&device_number(&request.mountpoint).into_iter().collect::<Vec<_>>());
    logger::start(request.debug);
    if let Err(line) = namespace::enter(request.namespace.as_deref()) {
        log::error!("{line}");
        return ExitCode::FAILURE;
    }
    // The end of process 1 ends all others of its namespace, so it cannot go into the background.
    let first = rustix::process::getpid().is_init();
    request.foreground |= request.debug || first;
    // What a container engine counts on without saying it (fuse-overlayfs's default).
    request.allow_other |= request.container && rustix::process::geteuid().is_root();

    let serve = |ready| match serve(&request, ready) {
        Ok(()) => 0,
        Err(line) => {
            log::error!("{line}");
            1
        }
    };
    if request.foreground {
        return ExitCode::from(serve(Ready::nobody_waits()));
    }
    let probe = device_number(&request.mountpoint).is_none().then(|| request.mountpoint.clone());
    ExitCode::from(in_background(probe, serve))
}

/// As many as threads serve at once.
const ARENAS: i32 = 4;

/// Everything that must be open before the root changes.
struct Equipment {
    sandbox: Sandbox,
    null: Null,
    log: Later,
    awake: Option<OwnedFd>,
}

/// What to make a union of, checked.
struct Plan {
    resolved: Resolved,
    overlaps: Overlaps,
    ground: Ground,
    means: Means,
    mountpoint: Mountpoint,
}

fn serve(request: &MountRequest, ready: Ready) -> Checked<()> {
    rustix::process::umask(Mode::empty());
    limits::set(request.max_files);
    let Plan { mut resolved, overlaps, ground, means, mountpoint } = plan(request)?;
    let doors = door::find_all(&resolved);
    clone_all(&mut resolved, &overlaps, &request.flags)?;
    let equipment = Equipment {
        sandbox: Sandbox::prepare(resolved.chroot.take()),
        null: Null::open(),
        log: logger::prepare(request.debug_file.as_deref(), request.foreground)?,
        awake: if request.awake { Some(open_awake()?) } else { None },
    };
    // Held to the end of this function, which is the end of the process.
    let mut locks = lock::lock_all(&resolved, request.lock_wait)?;
    let keeper = locks.file.take().map(Keeper::sign).transpose()?;
    let (device, mount) = means.mount(request, mountpoint)?;
    let facts = Facts {
        device: mount.device().map(attached::connection),
        ground,
        container: request.container,
        owners_aside: request.engine.aside.is_some(),
        maps_owners: request.owners.map(),
    };
    let mount = Arc::new(Mutex::new(mount));
    let layout = layout(resolved, overlaps);
    let lowers = Mutex::new(list_of(&layout.branches));

    let opened = open_union(layout, request).and_then(|union| {
        let watch = if request.watch { Some(watch::begin(&union)?) } else { None };
        let (connection, spare) = open_connection(union, device, request)?;
        let (union, exchange) = (spare.current.clone(), spare.exchange());
        let doors = Doors::new(doors, union.clone());
        let office = Office { facts, union, exchange, doors: doors.clone(), watch: watch.clone(), lowers };
        let watched = settle(request, equipment, &mount, office, ready)?;
        if let Some(watch) = watch {
            watch
                .start(spare.current.clone(), spare.notices.clone())
                .map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        doors.start().map_err(|error| format!("cannot start a thread: {error}"))?;
        if let Some(keeper) = keeper {
            keeper.start().map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        Ok((connection, spare, watched))
    });
    let (connection, spare, _watched) = opened.inspect_err(|_| {
        // The line on the way out says what failed; that nothing stands is the best that can be added.
        let _ = mount.lock().detach();
    })?;
    // It closes the engine too.
    connection.run(spare, request.watchdog).map_err(|error| format!("the connection to the kernel failed: {error}"))
}

/// Where the wish for processors that wake at once is written. Opening it asks for nothing yet.
fn open_awake() -> Checked<OwnedFd> {
    const DEVICE: &str = "/dev/cpu_dma_latency";
    rustix::fs::open(DEVICE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let reason = describe(errno);
        format!("option 'awake': {DEVICE}: {reason}: only root may keep processors from sleeping; leave the option out")
    })
}

/// Opens what the request names and checks how it goes together. Changes nothing.
fn plan(request: &MountRequest) -> Checked<Plan> {
    // An ordinary user's daemon is held to that user's own rights, at least.
    if !request.default_permissions && rustix::process::geteuid().is_root() {
        return Err("option 'relaxed_permissions' as root: nobody would check any permission, and everybody whom the \
                    mount lets in could do everything; leave the option out, or run cowfs as an ordinary user"
            .into());
    }
    let mut resolved = resolve::resolve(request)?;
    if request.container && request.engine.aside.is_none() {
        owners_aside::refuse(&resolved.branches)?;
    }
    unmapped::look_below_id_maps(&mut resolved, &request.owners);
    let means = Means::find(request)?;
    let mountpoint = mountpoint::resolve(&request.mountpoint, |path| means.clear(path))?;
    // Read here, where every dead union is off, and once: with hundreds of mounts it is long.
    let table = MountTable::read_if_any();
    let place = match &mountpoint {
        Mountpoint::Directory(directory) => {
            directory.no_second(&table, &source(request), request.subtype.as_deref().unwrap_or("cowfs"))?;
            Some(&directory.place)
        }
        // Whoever mounted need not have said default_permissions; only ACLs make the kernel check them all the same.
        Mountpoint::Device(_) if request.noacl && request.default_permissions => {
            return Err(
                "option 'noacl' on a mounted /dev/fuse: nobody might check permissions; leave it out, and squash_to_* and \
                 xattr_permissions=, which mean it, too"
                    .into(),
            );
        }
        Mountpoint::Device(_) => None,
    };
    let (overlaps, ground) = overlap::check(&resolved, place, &table)?;
    Ok(Plan { resolved, overlaps, ground, means, mountpoint })
}

fn layout(resolved: Resolved, overlaps: Overlaps) -> Layout {
    let branches = resolved.branches.into_iter().map(|branch| BranchSource {
        label: branch.place.label,
        root: branch.place.fd,
        writable: branch.writable,
        oci_whiteouts: branch.oci_whiteouts,
    });
    Layout {
        branches: branches.collect(),
        workdir: resolved.workdir.map(|workdir| workdir.fd),
        covered: overlaps.covered.into_iter().map(|id| (id.dev, id.ino)).collect(),
    }
}

fn open_union(layout: Layout, request: &MountRequest) -> Checked<Union> {
    // After the fork, because it is this process's own; before the change of root, because it is a path.
    if let Err(errno) = crate::sys::procfd::init() {
        log::warn!("/proc/self/fd cannot be opened ({}): some operations will fail", describe(errno));
    }
    Union::open(layout, request.engine.clone())
}

fn open_connection(union: Union, device: OwnedFd, request: &MountRequest) -> Checked<(Connection<Adapter>, Adapter)> {
    let audience = match (request.allow_other, request.allow_root) {
        (true, _) => Audience::Everybody,
        (false, true) => Audience::OwnerAndRoot,
        (false, false) => Audience::Owner,
    };
    let settings = Settings {
        entry_ttl: request.entry_timeout,
        attr_ttl: request.attr_timeout,
        negative_ttl: request.negative_timeout,
        direct_io: request.direct_io,
        coherent: request.coherent,
        watched: request.watch,
        passthrough: !request.no_passthrough,
        acl: !request.noacl,
        owners: Arc::new(request.owners.clone()),
        static_nlink: request.static_nlink,
    };
    let adapter = Adapter::new(union, settings);
    let (notices, spare) = (adapter.notices.clone(), adapter.spare());
    let connection = connect(adapter, device, audience, request.threads)
        .map_err(|error| format!("the kernel's first message could not be answered: {error}"))?;
    let notifier = connection.notifier().map_err(|error| format!("the connection cannot be shared: {error}"))?;
    notices.connect(notifier);
    Ok((connection, spare))
}

/// Lets the mount be seen, closes the world outside, and says so. Returns what must live as long as the daemon.
fn settle(
    request: &MountRequest,
    equipment: Equipment,
    mount: &Arc<Mutex<Mount>>,
    office: Office,
    ready: Ready,
) -> Checked<Option<OwnedFd>> {
    let caught = signals::catch().map_err(|error| format!("cannot catch signals: {error}"))?;
    mount.lock().attach()?;
    if !request.foreground {
        // EPERM would mean that it leads a session already.
        let _ = rustix::process::setsid();
    }
    let watched = match request.auto_unmount {
        true => mount.lock().watch(&equipment.null).map_err(|errno| format!("auto_unmount: {}", describe(errno)))?,
        false => None,
    };
    // Opens a socket by its path, so it cannot wait; nothing but a missing thread can go wrong from here.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        log::warn!("cannot tell the service manager (NOTIFY_SOCKET): {error}");
    }
    equipment.sandbox.enter()?;
    // After every fork: no other process is to have it.
    let control = Control::open(Arc::new(office)).map_err(|errno| format!("no socket: {}", describe(errno)))?;
    let taken = Arc::clone(mount);
    caught.watch(control, move || taken.lock().detach()).map_err(|error| format!("cannot start a thread: {error}"))?;
    if !request.no_near {
        near::start();
    }
    if let Some(device) = equipment.awake {
        awake::start(device).map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    if rustix::process::getpid().is_init() {
        process::ignore_children();
    }
    if !request.foreground {
        equipment.null.put();
    }
    logger::switch(equipment.log);
    ready.tell().map_err(|_| "whoever asked for the union is gone: taking it off again".to_owned())?;
    Ok(watched)
}
