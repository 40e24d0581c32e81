use super::*;
use crate::testing::root_or_skip;
use crate::types::LinuxContainerResources;

const HYBRID: &str = "\
22 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw
23 22 0:21 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
24 22 0:22 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
25 22 0:23 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
26 22 0:24 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
27 22 0:25 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
28 22 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

#[test]
fn layouts_are_recognized() {
    let hybrid = Cgroups::from_mounts(HYBRID, None).unwrap();
    assert_eq!(hybrid.version(), CgroupVersion::V1);
    let dirs = hybrid.dirs("/kubepods/podx").unwrap();
    assert_eq!(
        dirs.len(),
        4,
        "a directory shared by two controllers counts once: {dirs:?}"
    );
    let file = hybrid.oom_file("/a").unwrap().unwrap();
    assert_eq!(file, Path::new("/sys/fs/cgroup/memory/a/memory.oom_control"));

    let unified = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    let unified = Cgroups::from_mounts(unified, None).unwrap();
    assert_eq!(unified.version(), CgroupVersion::V2);
    let dirs = unified.dirs("/a").unwrap();
    assert_eq!(dirs, [(String::new(), PathBuf::from("/sys/fs/cgroup/a"))]);

    let error = Cgroups::from_mounts("", None).unwrap_err().to_string();
    assert!(error.contains("mount cgroup2"), "{error}");
    let no_pids = HYBRID.replace("pids", "rdma");
    let error = Cgroups::from_mounts(&no_pids, None).unwrap_err().to_string();
    assert!(error.contains("controller pids"), "{error}");
    for bad in ["a", "/a/../b", "", "../a"] {
        assert!(hybrid.dirs(bad).is_err(), "{bad:?}");
    }
}

/// A version 2 tree of plain files: what is written, where.
fn fake_v2() -> (tempfile::TempDir, Cgroups) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu memory pids misc\n").unwrap();
    fs::write(dir.path().join("cgroup.subtree_control"), "cpu\n").unwrap();
    let cgroups = Cgroups {
        version: CgroupVersion::V2,
        mounts: BTreeMap::from([(String::new(), dir.path().into())]),
    };
    (dir, cgroups)
}

#[test]
fn version_2_limits_and_usage() {
    let (dir, cgroups) = fake_v2();
    cgroups.create("/podx").unwrap();
    let control = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
    assert_eq!(
        control, "+pids",
        "each missing controller is enabled by a write of its own"
    );
    let group = dir.path().join("podx");
    fs::write(group.join("memory.swap.max"), "max").unwrap();
    let limits = LinuxContainerResources {
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        memory_limit_in_bytes: Some(1 << 20),
        memory_swap_limit_in_bytes: Some(3 << 20),
        pids_limit: Some(-1),
        cpuset_cpus: Some("0-1".into()),
        unified: [("memory.high".to_owned(), "4096".to_owned())].into(),
        ..LinuxContainerResources::default()
    };
    cgroups.limit("/podx", &limits).unwrap();
    for (file, value) in [
        ("cpu.weight", "39"),
        ("cpu.max", "50000 100000"),
        ("memory.max", "1048576"),
        ("memory.swap.max", "2097152"),
        ("pids.max", "max"),
        ("cpuset.cpus", "0-1"),
        ("memory.high", "4096"),
    ] {
        assert_eq!(fs::read_to_string(group.join(file)).unwrap(), value, "{file}");
    }
    let only_period = LinuxContainerResources {
        cpu_period: Some(20_000),
        ..LinuxContainerResources::default()
    };
    cgroups.limit("/podx", &only_period).unwrap();
    assert_eq!(fs::read_to_string(group.join("cpu.max")).unwrap(), "50000 20000");
    let evil = LinuxContainerResources {
        unified: [("../x.y".to_owned(), "1".to_owned())].into(),
        ..LinuxContainerResources::default()
    };
    assert!(cgroups.limit("/podx", &evil).is_err());

    fs::write(group.join("cpu.stat"), "usage_usec 1500\nuser_usec 1000\n").unwrap();
    fs::write(group.join("memory.current"), "5000\n").unwrap();
    fs::write(group.join("memory.max"), "10000\n").unwrap();
    fs::write(group.join("memory.stat"), "anon 700\ninactive_file 1000\npgfault 5\n").unwrap();
    fs::write(group.join("pids.current"), "3\n").unwrap();
    let usage = cgroups.usage("/podx").unwrap();
    let memory = usage.memory.unwrap();
    assert_eq!(usage.cpu.unwrap().usage_core_nano_seconds, 1_500_000);
    assert_eq!((memory.working_set_bytes, memory.rss_bytes), (4000, 700));
    assert_eq!((memory.available_bytes, usage.processes), (Some(6000), 3));
    assert_eq!(limits::weight(2), 1);
    assert_eq!(limits::weight(262_144), 10_000);
}

#[test]
fn real_groups_hold_limit_and_let_go() {
    if !root_or_skip() {
        return;
    }
    let cgroups = match Cgroups::detect() {
        Ok(cgroups) => cgroups,
        Err(error) => return println!("skipped: {error}"),
    };
    let name = format!("/sampan-test-{}", std::process::id());
    let group = format!("{name}/inner");
    cgroups.create(&group).unwrap();
    let limits = LinuxContainerResources {
        cpu_shares: Some(512),
        cpu_period: Some(100_000),
        cpu_quota: Some(20_000),
        memory_limit_in_bytes: Some(32 << 20),
        pids_limit: Some(50),
        ..LinuxContainerResources::default()
    };
    cgroups.limit(&group, &limits).unwrap();
    let grown = LinuxContainerResources {
        cpu_quota: Some(40_000),
        memory_limit_in_bytes: Some(64 << 20),
        ..LinuxContainerResources::default()
    };
    cgroups.limit(&group, &grown).unwrap();
    cgroups.restrict_devices(&group, &DeviceRule::usual()).unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    for (_, dir) in cgroups.dirs(&group).unwrap() {
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    assert_eq!(cgroups.processes(&name).unwrap(), [child.id() as i32]);
    assert!(cgroups.usage(&group).unwrap().memory.is_some());
    cgroups.kill(&name).unwrap();
    assert!(!child.wait().unwrap().success());
    cgroups.remove(&name).unwrap();
    assert!(!cgroups.exists(&group));
    cgroups.remove(&name).unwrap();
}

#[test]
fn version_2_device_program_is_accepted_and_decides() {
    if !root_or_skip() {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let Some(root) = unified.and_then(|line| line.split(' ').nth(4)) else {
        return println!("skipped: no cgroup2 is mounted");
    };
    let dir = Path::new(root).join(format!("sampan-devices-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let cgroups = Cgroups {
        version: CgroupVersion::V2,
        mounts: BTreeMap::from([(String::new(), root.into())]),
    };
    let group = format!("/{}", dir.file_name().unwrap().to_str().unwrap());
    // Everything usual, but not /dev/zero (1:5).
    let mut rules = DeviceRule::usual();
    rules.retain(|rule| rule.minor != Some(5));
    let attached = cgroups.restrict_devices(&group, &rules);
    let script = format!(
        "echo $$ > {}/cgroup.procs; head -c1 /dev/null && ! head -c1 /dev/zero 2>/dev/null",
        dir.display()
    );
    let status = attached.map(|()| std::process::Command::new("sh").arg("-c").arg(script).status());
    fs::remove_dir(&dir).unwrap();
    match status {
        Ok(status) => assert!(status.unwrap().success()),
        Err(error) if error.to_string().contains("not permitted") => {
            println!("skipped: the kernel refuses device programs: {error}");
        }
        Err(error) => panic!("{error}"),
    }
}
