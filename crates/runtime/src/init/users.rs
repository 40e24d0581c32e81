//! Who a process is: numbers and names, looked up in the container's own files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Failure, Result};
use crate::spec::UserSpec;
use crate::types::ContainerUser;

/// Files longer than this are not read to their end.
const MAX_FILE: u64 = 8 << 20;

/// A user with a home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub user: ContainerUser,
    pub home: String,
}

/// Looks the user up in the current root.
pub fn resolve(spec: &UserSpec) -> Result<Identity> {
    let passwd = read(Path::new("/etc/passwd"))?;
    let group = read(Path::new("/etc/group"))?;
    resolve_in(spec, &passwd, &group)
}

/// A file of the container, if it is a plain one: it may be anything the image's maker likes.
fn read(path: &Path) -> Result<String> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let Ok(file) = opened else {
        return Ok(String::new()); // images without users are common
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE).read_to_end(&mut bytes);
    read.map_err(super::doing(format!("read {}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve_in(spec: &UserSpec, passwd: &str, group: &str) -> Result<Identity> {
    let wanted = if spec.user.is_empty() { "0" } else { spec.user.as_str() };
    let number: Option<u32> = wanted.parse().ok();
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        (name == wanted || number == Some(uid)).then_some((name, uid, gid, home))
    });
    let (name, uid, own_gid, home) = match (entry, number) {
        (Some((name, uid, gid, home)), _) => (name, uid, gid, home),
        (None, Some(uid)) => ("", uid, 0, ""),
        (None, None) => {
            return Err(Failure(format!(
                "unable to find user {wanted}: no matching entries in passwd file"
            )));
        }
    };
    let groups = || {
        group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid: u32 = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    };
    let gid = match (spec.group.as_str(), spec.group.parse()) {
        ("", _) => own_gid,
        (_, Ok(gid)) => gid,
        (wanted, Err(_)) => {
            let found = groups().find(|(name, ..)| *name == wanted);
            let missing = || {
                Failure(format!(
                    "unable to find group {wanted}: no matching entries in group file"
                ))
            };
            found.ok_or_else(missing)?.1
        }
    };
    let mut all = vec![gid];
    all.extend(&spec.supplemental);
    if spec.merge_groups && !name.is_empty() {
        let member = groups().filter(|(.., members)| members.split(',').any(|m| m.trim() == name));
        all.extend(member.map(|(_, gid, _)| gid));
    }
    let mut supplemental_groups = Vec::new();
    for gid in all {
        if !supplemental_groups.contains(&gid) {
            supplemental_groups.push(gid);
        }
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(Identity {
        user: ContainerUser {
            uid,
            gid,
            supplemental_groups,
        },
        home: home.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1001:1002::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:1002:\nextra:x:1500:other,app\nbad:x:y:app\n";

    fn spec(user: &str, group: &str, supplemental: &[u32], merge_groups: bool) -> UserSpec {
        UserSpec {
            user: user.into(),
            group: group.into(),
            supplemental: supplemental.into(),
            merge_groups,
        }
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        type Row<'a> = (UserSpec, u32, u32, &'a [u32], &'a str);
        let table: [Row<'_>; 7] = [
            (spec("", "", &[], true), 0, 0, &[0], "/root"),
            (spec("app", "", &[], true), 1001, 1002, &[1002, 1500], "/home/app"),
            (spec("1001", "", &[7], true), 1001, 1002, &[1002, 7, 1500], "/home/app"),
            (spec("1001", "", &[7], false), 1001, 1002, &[1002, 7], "/home/app"),
            (spec("app", "extra", &[], false), 1001, 1500, &[1500], "/home/app"),
            (spec("4242", "", &[], true), 4242, 0, &[0], "/"),
            (spec("4242", "9", &[], true), 4242, 9, &[9], "/"),
        ];
        for (spec, uid, gid, groups, home) in table {
            let found = resolve_in(&spec, PASSWD, GROUP).unwrap();
            assert_eq!((found.user.uid, found.user.gid), (uid, gid), "{spec:?}");
            assert_eq!(found.user.supplemental_groups, groups, "{spec:?}");
            assert_eq!(found.home, home, "{spec:?}");
        }
        assert!(resolve_in(&spec("nobody", "", &[], true), PASSWD, GROUP).is_err());
        assert!(resolve_in(&spec("app", "nogroup", &[], true), PASSWD, GROUP).is_err());
        assert!(resolve_in(&spec("-1", "", &[], true), PASSWD, GROUP).is_err());
    }
}
