//! All tests, as continuous integration runs them.

use clap::Args as ClapArgs;

use crate::images;
use crate::tools::{Result, Tool, cargo, ensure, find, is_root, root, run, target};

#[derive(ClapArgs)]
pub struct Args {
    /// Leave out the tests that run a whole cluster with real containers
    #[arg(long)]
    pub no_e2e: bool,
    /// Leave out formatting and lints
    #[arg(long)]
    pub no_lints: bool,
}

const TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
        why: "tests make network namespaces",
    },
    Tool {
        program: "nsenter",
        package: "util-linux",
        why: "tests run clients in network namespaces",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
        why: "tests run real containers of it",
    },
    Tool {
        program: "etcd",
        package: "etcd-server",
        why: "tests keep clusters in a real etcd",
    },
    Tool {
        program: "docker-registry",
        package: "docker-registry",
        why: "tests pull from a real registry",
    },
    Tool {
        program: "dpkg-deb",
        package: "dpkg",
        why: "the example's images are made of Debian's packages",
    },
];

pub fn test(args: &Args) -> Result<()> {
    if is_root() {
        ensure(TOOLS)?;
    } else {
        eprintln!("not root: tests that need namespaces, mounts or containers say that they are skipped");
    }
    if find("kubectl").is_none() {
        eprintln!("kubectl is not on PATH: tests with the real kubectl say that they are skipped");
    }
    if !args.no_lints {
        run(cargo().args(["fmt", "--all", "--check"]))?;
        run(cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))?;
        if find("cargo-deny").is_some() {
            run(cargo().args(["deny", "--offline", "check", "licenses", "bans", "sources"]))?;
        } else {
            eprintln!("cargo-deny is not installed: licences and bans are not checked (cargo install cargo-deny)");
        }
    }
    run(cargo().args(["build", "--workspace", "--all-targets"]))?;
    run(cargo().args(["test", "--workspace", "--exclude", "sampan-e2e", "--no-fail-fast"]))?;
    if args.no_e2e || !is_root() {
        eprintln!(
            "end-to-end tests are left out ({})",
            if args.no_e2e { "--no-e2e" } else { "they need root" }
        );
        return Ok(());
    }
    let archive = target().join("example-images.tar");
    images::run(&images::Args {
        output: archive.clone(),
        force: false,
    })?;
    run(cargo()
        .args([
            "test",
            "-p",
            "sampan-e2e",
            "--no-fail-fast",
            "--",
            "--test-threads=1",
            "--nocapture",
        ])
        .env("SAMPAN_BIN", target().join("debug/sampan"))
        .env("SAMPAN_IMAGES", archive)
        .env("SAMPAN_EXAMPLES", root().join("examples")))
}
