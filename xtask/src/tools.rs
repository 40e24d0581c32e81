//! What a fresh machine may lack: installed where that is possible, clearly named where it is not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A program and the Debian package it comes in.
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
    pub why: &'static str,
}

/// Where a program is, if anywhere.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Administrators' programs are not always on an ordinary PATH.
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Makes sure the tools are there, by apt where this is root on a Debian.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    for tool in &missing {
        eprintln!(
            "{} is missing ({}); it is in the package {}",
            tool.program, tool.why, tool.package
        );
    }
    if !is_root() || find("apt-get").is_none() {
        return Err(format!("install them first: apt-get install {}", packages.join(" ")).into());
    }
    eprintln!("installing {}", packages.join(" "));
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .args(["-qq", "-y", "--no-install-recommends", "install"])
            .args(&packages);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        // Daemons in packages (a registry) are for tests to start, not for the machine to run.
        command.env("RUNLEVEL", "1");
        command.status()
    };
    if !install()?.success() {
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        if !install()?.success() {
            return Err(format!("apt-get could not install {}", packages.join(" ")).into());
        }
    }
    Ok(())
}

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Runs a command, showing it, and fails if it does.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let status = command
        .status()
        .map_err(|error| format!("{}: {error}", shown(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed ({status})", shown(command)).into())
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
