//! Devices of the machine that Pods can ask for by name: `example.com/tun: 1` under a container's limits.
//!
//! The machine's administrator says which device files are behind a name and how many containers may use one at a time;
//! a Pod that asks gets them into its `/dev`, allowed by its control group, without being privileged and without
//! knowing where they are. The node reports how many there are and how many of them are present.
//!
//! A Pod's devices are chosen when the node takes it and written into its directory before they are used, so that
//! containers that outlive the agent keep theirs. Upstream leaves all of this to plug-ins behind a socket; this is
//! what needs none.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sampan_runtime::Device;
use sampan_volumes::downward::units;

use crate::pod::{self, qos};

const FILE: &str = "devices";
/// More of one device than any node has Pods.
const MOST: u32 = 10_000;

/// Device files behind one name, as `NAME=PATH[*COUNT][,PATH...]`: `COUNT` containers may share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceResource {
    name: String,
    units: Vec<Unit>,
}

/// One device file, for one container at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unit {
    id: String,
    path: PathBuf,
}

impl FromStr for DeviceResource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "it must be DOMAIN/NAME=PATH[*COUNT][,PATH...], as example.com/tun=/dev/net/tun*10";
        let (name, paths) = text.split_once('=').ok_or(shape)?;
        let (domain, short) = name.split_once('/').ok_or(shape)?;
        let plain = |part: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            part.len() <= 63 && part.chars().all(inner) && ends(part.chars().next()) && ends(part.chars().last())
        };
        if !plain(domain) || !plain(short) || domain.chars().any(|c| c.is_ascii_uppercase() || c == '_') {
            return Err(format!("{name:?} is no name of a resource; {shape}"));
        }
        if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") {
            return Err(format!("names below kubernetes.io are the system's own; {shape}"));
        }
        let mut units = Vec::new();
        for path in paths.split(',') {
            let (path, count) = match path.split_once('*') {
                Some((path, count)) => (path, count.parse::<u32>().map_err(|_| shape)?),
                None => (path, 1),
            };
            let plain = |part: &str| !matches!(part, "" | "." | "..");
            if !path
                .strip_prefix("/dev/")
                .is_some_and(|below| below.split('/').all(plain))
            {
                return Err(format!("{path:?} is no path of a device below /dev"));
            }
            if count == 0 || count > MOST {
                return Err(format!("{count} is no count between 1 and {MOST}"));
            }
            for number in 0..count {
                let id = if count == 1 {
                    path.to_owned()
                } else {
                    format!("{path}*{number}")
                };
                let path = path.into();
                if units.iter().any(|unit: &Unit| unit.id == id) {
                    return Err(format!("{id} is named twice"));
                }
                units.push(Unit { id, path });
            }
        }
        let name = name.to_owned();
        Ok(Self { name, units })
    }
}

impl DeviceResource {
    /// The name Pods ask for.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Unit {
    fn is_present(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| {
            let kind = metadata.file_type();
            kind.is_char_device() || kind.is_block_device()
        })
    }
}

/// Why a Pod does not get its devices; the first is worded as upstream words it.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    #[error(
        "Allocate failed due to requested number of devices unavailable for {name}. Requested: {requested}, \
         Available: {available}, which is unexpected"
    )]
    Unavailable {
        name: String,
        requested: usize,
        available: usize,
    },
    #[error("Allocate failed due to the devices of the pod cannot be recorded: {0}, which is unexpected")]
    Record(#[source] io::Error),
}

/// Ids of a Pod's devices by resource.
type Taken = BTreeMap<String, Vec<String>>;

/// The node's devices and who has them.
pub struct Devices {
    resources: Vec<DeviceResource>,
    /// By Pod.
    taken: Mutex<BTreeMap<String, Taken>>,
}

impl Devices {
    /// With what Pods in `pods` already have.
    pub fn load(pods: &Path, resources: Vec<DeviceResource>) -> Self {
        let mut taken = BTreeMap::new();
        for entry in fs::read_dir(pods).into_iter().flatten().flatten() {
            let path = entry.path().join(FILE);
            let read =
                fs::read(&path).and_then(|text| serde_json::from_slice::<Taken>(&text).map_err(io::Error::other));
            match read {
                Ok(of_pod) => drop(taken.insert(entry.file_name().to_string_lossy().into_owned(), of_pod)),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => tracing::error!(path = %path.display(), %error, "a pod's devices cannot be read"),
            }
        }
        Self {
            resources,
            taken: Mutex::new(taken),
        }
    }

    /// What the node has, and how much of it is present now.
    pub fn amounts(&self) -> impl Iterator<Item = (&str, Quantity, Quantity)> {
        self.resources.iter().map(|resource| {
            let present = resource.units.iter().filter(|unit| unit.is_present()).count();
            let quantity = |count: usize| Quantity(count.to_string());
            (
                resource.name.as_str(),
                quantity(resource.units.len()),
                quantity(present),
            )
        })
    }

    /// Chooses the Pod's devices; the same ones if that was done before. `dir` is the Pod's directory.
    pub fn take(&self, pod: &Pod, dir: &Path) -> Result<(), DevicesError> {
        let uid = pod::uid(pod);
        let mut taken = self.lock();
        if taken.contains_key(uid) {
            return Ok(());
        }
        let mut of_pod = Taken::new();
        for resource in &self.resources {
            let requested = usize::try_from(qos::pod_requests(pod, &resource.name)).unwrap_or(0);
            if requested == 0 {
                continue;
            }
            let held: Vec<&String> = taken
                .values()
                .filter_map(|other| other.get(&resource.name))
                .flatten()
                .collect();
            let free = resource
                .units
                .iter()
                .filter(|unit| !held.contains(&&unit.id) && unit.is_present());
            let chosen: Vec<String> = free.map(|unit| unit.id.clone()).take(requested).collect();
            if chosen.len() < requested {
                return Err(DevicesError::Unavailable {
                    name: resource.name.clone(),
                    requested,
                    available: chosen.len(),
                });
            }
            of_pod.insert(resource.name.clone(), chosen);
        }
        if of_pod.is_empty() {
            return Ok(());
        }
        write(dir, &of_pod).map_err(DevicesError::Record)?;
        taken.insert(uid.to_owned(), of_pod);
        Ok(())
    }

    /// The devices of one of the Pod's containers. Init containers use what those after them get; sidecars and
    /// containers share nothing.
    pub fn of(&self, pod: &Pod, container: &str) -> Vec<Device> {
        let taken = self.lock();
        let Some(of_pod) = taken.get(pod::uid(pod)) else {
            return Vec::new();
        };
        let mut devices: Vec<Device> = Vec::new();
        for (name, ids) in of_pod {
            let (from, count) = share(pod, container, name);
            let units = self.resources.iter().filter(|resource| resource.name == *name);
            let units = units.flat_map(|resource| &resource.units);
            for unit in units.filter(|unit| ids.iter().skip(from).take(count).any(|id| *id == unit.id)) {
                if devices.iter().any(|device| device.host_path == unit.path) {
                    continue; // two shares of one device are one device
                }
                devices.push(Device {
                    host_path: unit.path.clone(),
                    container_path: unit.path.clone(),
                    permissions: "rw".into(),
                });
            }
        }
        devices
    }

    /// The Pod is gone, and its directory. Idempotent.
    pub fn give_back(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Gives back what Pods have that are `over`.
    pub fn give_back_of(&self, over: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| !over(uid));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of the Pod's devices of a name are this container's: the first of them and how many.
fn share(pod: &Pod, container: &str, name: &str) -> (usize, usize) {
    let asked = |container: &Container| {
        let limits = container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref());
        let amount = limits.and_then(|limits| limits.get(name)).and_then(units);
        amount.and_then(|amount| usize::try_from(amount).ok()).unwrap_or(0)
    };
    let mut from = 0;
    for init in pod::init_containers(pod) {
        if init.name == container {
            return (from, asked(init));
        }
        if pod::is_sidecar(init) {
            from += asked(init);
        }
    }
    for main in pod::containers(pod) {
        if main.name == container {
            return (from, asked(main));
        }
        from += asked(main);
    }
    (from, 0)
}

fn write(dir: &Path, of_pod: &Taken) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let new = dir.join(format!("{FILE}.new"));
    fs::write(&new, serde_json::to_vec(of_pod).map_err(io::Error::other)?)?;
    fs::rename(&new, dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::testing;

    #[test]
    fn names_and_paths_are_checked() {
        let table = [
            ("example.com/tun=/dev/net/tun", Ok(1)),
            ("example.com/tun=/dev/net/tun*3,/dev/null", Ok(4)),
            ("tun=/dev/net/tun", Err("DOMAIN/NAME")),
            ("example.com/tun", Err("DOMAIN/NAME")),
            ("Example.com/tun=/dev/null", Err("no name")),
            ("example.com/-=/dev/null", Err("no name")),
            ("node.kubernetes.io/x=/dev/null", Err("system's own")),
            ("example.com/x=/etc/passwd", Err("below /dev")),
            ("example.com/x=/dev/../etc/passwd", Err("below /dev")),
            ("example.com/x=/dev//null", Err("below /dev")),
            ("example.com/x=/dev/null*0", Err("no count")),
            ("example.com/x=/dev/null*many", Err("DOMAIN/NAME")),
            ("example.com/x=/dev/null,/dev/null", Err("twice")),
        ];
        for (text, expected) in table {
            match (text.parse::<DeviceResource>(), expected) {
                (Ok(resource), Ok(count)) => assert_eq!(resource.units.len(), count, "{text}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    fn pod(uid: &str, count: u32) -> Pod {
        let wants = |count: u32| json!({"limits": {"example.com/d": count.to_string()}});
        let mut pod = testing::pod(json!({
            "initContainers": [
                {"name": "first", "resources": wants(1)},
                {"name": "side", "restartPolicy": "Always", "resources": wants(1)},
                {"name": "second", "resources": wants(1)},
            ],
            "containers": [{"name": "a", "resources": wants(count)}, {"name": "b", "resources": wants(1)}, {"name": "c"}],
        }));
        pod.metadata.uid = Some(uid.into());
        pod
    }

    #[test]
    fn a_device_has_one_user_and_a_restart_remembers() {
        let dir = tempfile::tempdir().unwrap();
        let resources: Vec<DeviceResource> = vec![
            "example.com/d=/dev/null,/dev/zero,/dev/full*2,/dev/sampan-is-not-there"
                .parse()
                .unwrap(),
        ];
        let devices = Devices::load(dir.path(), resources.clone());
        let amounts: Vec<(&str, Quantity, Quantity)> = devices.amounts().collect();
        assert_eq!(amounts, [("example.com/d", Quantity("5".into()), Quantity("4".into()))]);

        let one = pod("one", 1);
        devices.take(&one, &dir.path().join("one")).unwrap();
        let paths = |devices: &Devices, container: &str| -> Vec<String> {
            let of = devices.of(&one, container).into_iter();
            of.map(|device| device.host_path.display().to_string()).collect()
        };
        let expect = |devices: &Devices| {
            assert_eq!(paths(devices, "first"), ["/dev/null"]);
            assert_eq!(paths(devices, "side"), ["/dev/null"]);
            assert_eq!(paths(devices, "second"), ["/dev/zero"]);
            assert_eq!(paths(devices, "a"), ["/dev/zero"]);
            assert_eq!(paths(devices, "b"), ["/dev/full"]);
            assert_eq!(paths(devices, "c"), Vec::<String>::new());
        };
        expect(&devices);

        let two = pod("two", 1);
        let error = devices.take(&two, &dir.path().join("two")).unwrap_err().to_string();
        assert!(
            error.contains("unavailable for example.com/d. Requested: 3, Available: 1,"),
            "{error}"
        );
        let devices = Devices::load(dir.path(), resources);
        expect(&devices);
        assert!(devices.take(&two, &dir.path().join("two")).is_err());
        devices.give_back("one");
        devices.take(&two, &dir.path().join("two")).unwrap();
        assert_eq!(paths(&devices, "a"), Vec::<String>::new());
    }
}
