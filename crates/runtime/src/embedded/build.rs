//! From a container's configuration to what its process needs: everything is decided here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::Embedded;
use super::records::Sandbox;
use crate::caps::{self, Capability};
use crate::cgroups::DeviceRule;
use crate::runtime::{Result, RuntimeError};
use crate::seccomp::Filter;
use crate::spec::*;
use crate::types::*;

/// Paths that tell or change too much about the node.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Name and number of what is in every `/dev`.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container's specification and the devices it may use.
pub struct Built {
    pub spec: ContainerSpec,
    pub mounted_images: Vec<String>,
}

impl Embedded {
    /// Decides everything about a container. `dir` is the container's own directory.
    pub(super) fn build(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        image: &Image,
        id: &str,
        cgroup: &str,
        dir: &Path,
    ) -> Result<Built> {
        let security = &config.linux.security_context;
        let namespaces = &sandbox.record.config.linux.namespaces;
        let args = config.command_line(image);
        if args.first().is_none_or(String::is_empty) {
            return Err(RuntimeError::invalid(format!(
                "no command specified: neither the container nor image {:?} has one",
                config.image
            )));
        }
        let capabilities = caps::effective(&security.capabilities, security.privileged)?;
        let cwd = [&config.working_dir, &image.config.working_dir];
        let cwd = cwd
            .into_iter()
            .find(|dir| !dir.is_empty())
            .map_or("/", |dir| dir.as_str());
        let process = ProcessSpec {
            args,
            env: environment(sandbox, config, image),
            cwd: cwd.into(),
            tty: config.tty,
            user: user(security, image)?,
            seccomp: seccomp(security, &capabilities)?,
            apparmor: apparmor(security)?,
            capabilities: capabilities.iter().map(|capability| capability.0).collect(),
            no_new_privs: security.no_new_privs,
            users: sandbox.record.config.linux.users.clone(),
        };
        let (mounts, mounted_images) = self.mounts(sandbox, config)?;
        let (devices, _) = devices(config)?;
        let paths = |given: &Option<Vec<String>>, usual: &[&str]| -> Vec<PathBuf> {
            match given {
                _ if security.privileged => Vec::new(),
                Some(given) => given.iter().map(PathBuf::from).collect(),
                None => usual.iter().map(PathBuf::from).collect(),
            }
        };
        let (layers, lower) = self.lower(&image.id, dir)?;
        let rootfs = RootfsSpec {
            layers,
            lower,
            dir: dir.into(),
            readonly: security.readonly_rootfs,
            volumes: volumes(config, image),
            privileged: security.privileged,
            host_network: namespaces.network == NamespaceMode::Node,
            host_ipc: namespaces.ipc == NamespaceMode::Node,
            mounts,
            devices,
            masked: paths(&security.masked_paths, &MASKED),
            read_only_paths: paths(&security.readonly_paths, &READ_ONLY),
        };
        let groups = self.cgroups.dirs(cgroup).map_err(super::internal("control group"))?;
        let v1 = self.cgroups.version() == CgroupVersion::V1;
        let spec = ContainerSpec {
            id: id.into(),
            process,
            rootfs,
            pid: namespaces.pid,
            oom_score_adj: config.linux.resources.oom_score_adj,
            cgroups: CgroupSpec {
                dirs: groups.iter().map(|(_, dir)| dir.clone()).collect(),
                oom_file: self
                    .cgroups
                    .oom_file(cgroup)
                    .map_err(super::internal("control group"))?,
                v1: if v1 { groups } else { Vec::new() },
            },
            log_path: (!config.log_path.is_empty()).then(|| sandbox.record.config.log_directory.join(&config.log_path)),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
        };
        Ok(Built { spec, mounted_images })
    }

    /// The image's layers relative to their directory. An image without layers gets an empty one.
    fn lower(&self, image: &str, dir: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
        let base = self.images.root().join("layers");
        let layers = self.images.layer_dirs(image)?;
        if layers.is_empty() {
            return Ok((base, vec![dir.join("empty")]));
        }
        let relative = |path: &PathBuf| path.strip_prefix(&base).unwrap_or(path).to_path_buf();
        Ok((base.clone(), layers.iter().map(relative).collect()))
    }

    fn mounts(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<(Vec<MountSpec>, Vec<String>)> {
        let mut mounts = Vec::new();
        let mut images = Vec::new();
        for mount in &config.mounts {
            let target = &mount.container_path;
            if !target.is_absolute() || target.components().any(|c| c == Component::ParentDir) {
                return Err(RuntimeError::invalid(format!(
                    "mount path {} must be absolute and without \"..\"",
                    target.display()
                )));
            }
            let mut spec = MountSpec {
                target: target.clone(),
                readonly: mount.readonly,
                recursive_readonly: mount.recursive_readonly,
                propagation: mount.propagation,
                ..MountSpec::default()
            };
            if let Some(wanted) = &mount.image {
                let found = self.images.get(wanted)?;
                let image = found.ok_or_else(|| RuntimeError::not_found("image", wanted))?;
                spec.layers = self.lower(&image.id, Path::new(""))?.1;
                spec.sub_path = PathBuf::from(mount.image_sub_path.trim_start_matches('/'));
                images.push(image.id);
            } else {
                let source = &mount.host_path;
                if let Err(error) = fs::metadata(source) {
                    let create = error.kind() == io::ErrorKind::NotFound;
                    let made = if create { fs::create_dir_all(source) } else { Err(error) };
                    made.map_err(super::internal(format!("mount source {}", source.display())))?;
                }
                spec.source.clone_from(source);
            }
            mounts.push(spec);
        }
        // What the sandbox brings, unless the configuration says otherwise.
        for name in ["resolv.conf", "hostname"] {
            let target = Path::new("/etc").join(name);
            let source = self.sandbox_dir(&sandbox.record.id).join(name);
            if source.exists() && !mounts.iter().any(|mount| mount.target == target) {
                mounts.push(MountSpec {
                    target,
                    source,
                    ..MountSpec::default()
                });
            }
        }
        Ok((mounts, images))
    }
}

/// Volumes of the image that no mount takes the place of.
fn volumes(config: &ContainerConfig, image: &Image) -> Vec<PathBuf> {
    let declared = image.config.volumes.iter().map(PathBuf::from);
    declared
        .filter(|path| path.is_absolute() && !path.components().any(|c| c == Component::ParentDir))
        .filter(|path| !config.mounts.iter().any(|mount| mount.container_path == *path))
        .collect()
}

fn environment(sandbox: &Sandbox, config: &ContainerConfig, image: &Image) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut put = |entry: String| {
        let key = entry.split('=').next().unwrap_or_default().to_owned();
        let same = |known: &String| known.split('=').next() == Some(key.as_str());
        match env.iter().position(same).and_then(|index| env.get_mut(index)) {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    };
    put(DEFAULT_PATH.into());
    if config.tty {
        put("TERM=xterm".into());
    }
    let hostname = &sandbox.record.config.hostname;
    if !hostname.is_empty() {
        put(format!("HOSTNAME={hostname}"));
    }
    image.config.env.iter().for_each(|entry| put(entry.clone()));
    for variable in &config.envs {
        put(format!("{}={}", variable.key, variable.value));
    }
    env
}

fn user(security: &LinuxContainerSecurityContext, image: &Image) -> Result<UserSpec> {
    let id = |what: &str, value: i64| {
        u32::try_from(value).map_err(|_| RuntimeError::invalid(format!("{what} {value} is no id")))
    };
    let (mut user, mut group) = match image.config.user.split_once(':') {
        Some((user, group)) => (user.to_owned(), group.to_owned()),
        None => (image.config.user.clone(), String::new()),
    };
    if let Some(uid) = security.run_as_user {
        (user, group) = (id("runAsUser", uid)?.to_string(), String::new());
    } else if !security.run_as_username.is_empty() {
        (user, group) = (security.run_as_username.clone(), String::new());
    }
    if let Some(gid) = security.run_as_group {
        group = id("runAsGroup", gid)?.to_string();
    }
    let supplemental = security.supplemental_groups.iter();
    Ok(UserSpec {
        user,
        group,
        supplemental: supplemental.map(|&gid| id("group", gid)).collect::<Result<_>>()?,
        merge_groups: security.supplemental_groups_policy == SupplementalGroupsPolicy::Merge,
    })
}

fn seccomp(security: &LinuxContainerSecurityContext, capabilities: &BTreeSet<Capability>) -> Result<Option<Filter>> {
    match &security.seccomp {
        _ if security.privileged => Ok(None),
        SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::RuntimeDefault => Ok(Some(Filter::runtime_default(capabilities))),
        SecurityProfile::Localhost(path) => {
            let text = fs::read(path)
                .map_err(|error| RuntimeError::invalid(format!("cannot load seccomp profile {path:?}: {error}")))?;
            let filter = Filter::from_json(&text);
            filter
                .map(Some)
                .map_err(|error| RuntimeError::invalid(format!("{path:?}: {error}")))
        }
    }
}

/// Whether the kernel has AppArmor switched on.
pub fn has_apparmor() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// Only profiles by name: a default profile would have to be compiled and loaded by a tool we do not
/// bring, so `RuntimeDefault` leaves confinement to capabilities and seccomp.
fn apparmor(security: &LinuxContainerSecurityContext) -> Result<Option<String>> {
    match &security.apparmor {
        SecurityProfile::Localhost(profile) if !security.privileged => {
            if !has_apparmor() {
                return Err(RuntimeError::invalid(format!(
                    "AppArmor profile {profile:?} was asked for, but AppArmor is not enabled here"
                )));
            }
            Ok(Some(profile.clone()))
        }
        _ => Ok(None),
    }
}

fn device_of(host: &Path, inside: &Path, access: &str) -> io::Result<Option<DeviceSpec>> {
    let metadata = fs::metadata(host)?;
    let kind = metadata.file_type();
    let kind = if kind.is_char_device() {
        "c"
    } else if kind.is_block_device() {
        "b"
    } else {
        return Ok(None);
    };
    Ok(Some(DeviceSpec {
        path: inside.into(),
        kind: kind.into(),
        major: nix::sys::stat::major(metadata.rdev()),
        minor: nix::sys::stat::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: if access.is_empty() { "rwm".into() } else { access.into() },
    }))
}

/// Every device below a directory, without what `/dev` of a container brings itself.
fn devices_below(host: &Path, inside: &Path, access: &str, found: &mut Vec<DeviceSpec>) {
    for entry in fs::read_dir(host).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let (host, inside) = (host.join(&name), inside.join(&name));
        let own = [
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/dev/console",
            "/dev/fd",
            "/dev/ptmx",
        ];
        if own.iter().any(|own| inside == Path::new(own)) {
            continue;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            devices_below(&host, &inside, access, found);
        } else if !kind.is_symlink() {
            found.extend(device_of(&host, &inside, access).ok().flatten());
        }
    }
}

/// The device nodes of a container and what it may do with devices.
pub fn devices(config: &ContainerConfig) -> Result<(Vec<DeviceSpec>, Vec<DeviceRule>)> {
    let mut nodes: Vec<DeviceSpec> = DEVICES
        .iter()
        .map(|&(name, major, minor)| DeviceSpec {
            path: Path::new("/dev").join(name),
            kind: "c".into(),
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: "rwm".into(),
        })
        .collect();
    if config.linux.security_context.privileged {
        devices_below(Path::new("/dev"), Path::new("/dev"), "rwm", &mut nodes);
        return Ok((nodes, vec![DeviceRule::new('a', None, None, "rwm")]));
    }
    let mut rules = DeviceRule::usual();
    for device in &config.devices {
        let mut added = Vec::new();
        if device.host_path.is_dir() {
            let (host, inside) = (&device.host_path, &device.container_path);
            devices_below(host, inside, &device.permissions, &mut added);
        } else {
            let what = format!("device {}", device.host_path.display());
            let node = device_of(&device.host_path, &device.container_path, &device.permissions)
                .map_err(|error| RuntimeError::invalid(format!("{what}: {error}")))?;
            added.push(node.ok_or_else(|| RuntimeError::invalid(format!("{what} is no device")))?);
        }
        for mut node in added {
            // The container's own node of the device: who may use it is who the container runs as.
            let security = &config.linux.security_context;
            let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
            node.uid = id(security.run_as_user).unwrap_or(node.uid);
            node.gid = id(security.run_as_group).unwrap_or(node.gid);
            let kind = if node.kind == "b" { 'b' } else { 'c' };
            rules.push(DeviceRule::new(kind, Some(node.major), Some(node.minor), &node.access));
            nodes.push(node);
        }
    }
    Ok((nodes, rules))
}

/// A signal by name (`SIGTERM`, `TERM`, `RTMIN+3`) or number.
pub fn signal_number(name: &str) -> Result<i32> {
    let unknown = || RuntimeError::invalid(format!("unknown stop signal {name:?}"));
    if name.is_empty() {
        return Ok(libc::SIGTERM);
    }
    if let Ok(number) = name.parse() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| text.trim_start_matches(['+', '-']).parse::<i32>().ok();
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        let add = if rest.is_empty() { Some(0) } else { offset(rest) };
        return add.filter(|n| (0..=30).contains(n)).map(|n| 34 + n).ok_or_else(unknown);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        let less = if rest.is_empty() { Some(0) } else { offset(rest) };
        return less
            .filter(|n| (0..=30).contains(n))
            .map(|n| 64 - n)
            .ok_or_else(unknown);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{bare}").parse().map_err(|_| unknown())?;
    Ok(signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        let table = [
            ("", 15),
            ("SIGQUIT", 3),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ];
        for (name, number) in table {
            assert_eq!(signal_number(name).unwrap(), number, "{name}");
        }
        for bad in ["SIGNO", "0", "65", "RTMIN+99"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_come_from_the_context_or_the_image() {
        let image = |user: &str| Image {
            config: ImageConfig {
                user: user.into(),
                ..ImageConfig::default()
            },
            ..Image::default()
        };
        let context = |run_as_user, run_as_group| LinuxContainerSecurityContext {
            run_as_user,
            run_as_group,
            ..LinuxContainerSecurityContext::default()
        };
        let table = [
            (context(None, None), "app:extra", "app", "extra"),
            (context(Some(5), None), "app:extra", "5", ""),
            (context(Some(5), Some(6)), "", "5", "6"),
            (context(None, Some(6)), "app", "app", "6"),
        ];
        for (context, of_image, expected_user, group) in table {
            let spec = user(&context, &image(of_image)).unwrap();
            assert_eq!((spec.user.as_str(), spec.group.as_str()), (expected_user, group));
        }
        assert!(user(&context(Some(-5), None), &image("")).is_err());
    }
}
