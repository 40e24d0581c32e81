//! From a fresh machine to a running application: build, start a cluster, run the example, say where it answers.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;

use crate::images;
use crate::tools::{Result, cargo, is_root, root, run, target};

#[derive(ClapArgs)]
pub struct Args {
    /// Where the cluster keeps everything
    #[arg(long, default_value = "/var/lib/sampan")]
    pub data_dir: PathBuf,
    /// The API's port
    #[arg(long, default_value_t = 6443)]
    pub port: u16,
    /// Build without optimisation: quicker to build, slower to run
    #[arg(long)]
    pub debug: bool,
}

pub fn up(args: &Args) -> Result<()> {
    if !is_root() {
        return Err("a cluster runs containers, which needs root; try again as root".into());
    }
    let profile: &[&str] = if args.debug { &[] } else { &["--release"] };
    run(cargo()
        .args(["build", "-p", "sampan"])
        .args(profile)
        .current_dir(root()))?;
    let binary = target().join(if args.debug { "debug/sampan" } else { "release/sampan" });

    let archive = target().join("example-images.tar");
    images::run(&images::Args {
        output: archive.clone(),
        force: false,
    })?;
    let data_dir = args.data_dir.to_string_lossy().into_owned();
    run(Command::new(&binary)
        .args(["image", "--data-dir", &data_dir, "import"])
        .arg(&archive))?;

    let kubeconfig = args.data_dir.join("admin.kubeconfig");
    start(&binary, args)?;
    run(Command::new(&binary)
        .arg("apply")
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .arg("-f")
        .arg(root().join("examples/guestbook/guestbook.yaml")))?;
    let address = wait_for_answer(30080)?;
    println!();
    println!("The guestbook answers at http://{address}/");
    println!("Look around:  export KUBECONFIG={}", kubeconfig.display());
    println!("              kubectl get pods --all-namespaces");
    println!(
        "The server's log is {}; stop it with: kill $(cat {})",
        log_file(args).display(),
        pid_file(args).display()
    );
    println!(
        "Remove what it left on this machine: {} server --data-dir {data_dir} --cleanup",
        binary.display()
    );
    Ok(())
}

fn pid_file(args: &Args) -> PathBuf {
    args.data_dir.join("server.pid")
}

fn log_file(args: &Args) -> PathBuf {
    args.data_dir.join("server.log")
}

/// Starts the server in the background, unless one answers already, and waits until it serves.
fn start(binary: &Path, args: &Args) -> Result<()> {
    let api = SocketAddr::from(([127, 0, 0, 1], args.port));
    if TcpStream::connect_timeout(&api, Duration::from_millis(200)).is_ok() {
        eprintln!("a server answers on {api} already; using it");
        return Ok(());
    }
    fs::create_dir_all(&args.data_dir)?;
    let log = File::options().create(true).append(true).open(log_file(args))?;
    let mut server = Command::new(binary)
        .arg("server")
        .arg("--data-dir")
        .arg(&args.data_dir)
        .arg("--listen")
        .arg(format!("0.0.0.0:{}", args.port))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    fs::write(pid_file(args), server.id().to_string())?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(status) = server.try_wait()? {
            let log = fs::read_to_string(log_file(args)).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            return Err(format!(
                "the server ended ({status}):\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            )
            .into());
        }
        // The port is taken first thing; the kubeconfig is written once the API serves.
        let written = args.data_dir.join("admin.kubeconfig").is_file();
        if written && TcpStream::connect_timeout(&api, Duration::from_millis(200)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!(
        "the server did not listen on {api} within a minute; see {}",
        log_file(args).display()
    )
    .into())
}

/// Asks the NodePort until the page is there.
fn wait_for_answer(port: u16) -> Result<String> {
    use std::io::{Read, Write};
    let address = format!("127.0.0.1:{port}");
    let socket: SocketAddr = address.parse()?;
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&socket, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    eprint!("waiting for the guestbook");
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            eprintln!(" it is there");
            return Ok(address);
        }
        eprint!(".");
        std::thread::sleep(Duration::from_millis(500));
    }
    eprintln!();
    Err("the guestbook did not answer within two minutes; kubectl -n guestbook describe pods and the end of the server's log say more".into())
}
