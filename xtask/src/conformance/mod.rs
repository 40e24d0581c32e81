//! Runs the public conformance suite, group by group, against one or more clusters in turn.
//!
//! The suite is Kubernetes' own `e2e.test` of the release Sampan is compatible with; it is not part of this
//! repository. A group passes when as many tests as it is known to have were run and none failed. With several
//! targets each group runs on one after the other, so that their wall times were taken on the same machine in the
//! same minutes.

mod groups;
mod nodes;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;

use crate::tools::{Result, find, target};
use groups::Group;

#[derive(ClapArgs)]
pub struct Args {
    /// The suite: `e2e.test` of Kubernetes 1.36
    #[arg(long)]
    pub suite: PathBuf,
    /// A cluster to test: NAME=KUBECONFIG. Repeat to compare; the first is the reference.
    #[arg(long = "target", required = true)]
    pub targets: Vec<Target>,
    /// Groups to run: A to H need no kubelet, I and W a node and the suite's images
    #[arg(long, value_delimiter = ',', default_values = groups::API)]
    pub groups: Vec<String>,
    /// Nodes to keep Ready without a machine behind them. The suite wants two nodes in all.
    #[arg(long, default_value_t = 0)]
    pub fake_nodes: usize,
    /// Leave out the tests that wait five minutes by design
    #[arg(long)]
    pub quick: bool,
    /// The kubectl the suite calls; a release build of 1.33 or later
    #[arg(long)]
    pub kubectl: Option<PathBuf>,
    /// Where the suite's output goes
    #[arg(long)]
    pub logs: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Target {
    name: String,
    kubeconfig: PathBuf,
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("a target is NAME=KUBECONFIG")?;
        Ok(Target {
            name: name.into(),
            kubeconfig: path.into(),
        })
    }
}

pub fn run(args: &Args) -> Result<()> {
    let chosen: Vec<&Group> = args
        .groups
        .iter()
        .map(|name| groups::group(name).ok_or_else(|| format!("there is no group {name}")))
        .collect::<std::result::Result<_, _>>()?;
    let kubectl = match &args.kubectl {
        Some(path) => path.clone(),
        None => find("kubectl").ok_or("kubectl is not on PATH; give one with --kubectl")?,
    };
    let logs = args.logs.clone().unwrap_or_else(|| target().join("conformance"));
    let mut nodes = Vec::new();
    for target in &args.targets {
        fs::create_dir_all(logs.join(&target.name))?;
        if args.fake_nodes > 0 {
            nodes.push(nodes::Nodes::start(&kubectl, &target.kubeconfig, args.fake_nodes)?);
        }
    }

    let mut wrong = 0;
    for group in &chosen {
        let expected = group.tests - if args.quick { groups::waiting(group.name) } else { 0 };
        let mut first: Option<Duration> = None;
        for target in &args.targets {
            let log = logs.join(&target.name).join(format!("{}.log", group.name));
            let (outcome, wall) = one(args, group, target, &kubectl, &log)?;
            let passed = outcome.passed == expected && outcome.failed.is_empty();
            wrong += usize::from(!passed);
            let ratio = first.map_or_else(String::new, |first| {
                format!("  {:.2} x", wall.as_secs_f64() / first.as_secs_f64().max(0.1))
            });
            first.get_or_insert(wall);
            println!(
                "{} {:<10} {:>3} of {:>3} passed  {:>6.1} s{ratio}  {}",
                group.name,
                target.name,
                outcome.passed,
                expected,
                wall.as_secs_f64(),
                if args.targets.len() > 1 { "" } else { group.what },
            );
            for name in &outcome.failed {
                println!("    failed: {name}");
            }
            if !passed {
                println!("    see {}", log.display());
            }
        }
    }
    if wrong > 0 {
        return Err(format!("{wrong} groups did not pass").into());
    }
    Ok(())
}

/// One group against one cluster, and how long it took.
fn one(args: &Args, group: &Group, target: &Target, kubectl: &Path, log: &Path) -> Result<(Outcome, Duration)> {
    let output = File::create(log)?;
    let started = Instant::now();
    let mut suite = Command::new(&args.suite);
    suite
        .arg(format!("--kubeconfig={}", target.kubeconfig.display()))
        .arg(format!("--kubectl-path={}", kubectl.display()))
        .arg(format!("--ginkgo.focus={}", group.expression()))
        .args(["--provider=skeleton", "--num-nodes=2", "--allowed-not-ready-nodes=-1"])
        .args(["--minStartupPods=-1", "--ginkgo.no-color", "--ginkgo.timeout=2h"])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    if args.quick {
        suite.arg(format!("--ginkgo.skip={}", groups::WAITING));
    }
    // Its own verdict is in the output, together with how many tests there were.
    suite
        .status()
        .map_err(|error| format!("{}: {error}", args.suite.display()))?;
    let wall = started.elapsed();
    let output = fs::read(log)?;
    let outcome = outcome(&String::from_utf8_lossy(&output))
        .ok_or_else(|| format!("the suite came to no verdict; see {}", log.display()))?;
    Ok((outcome, wall))
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    passed: usize,
    failed: Vec<String>,
}

/// The verdict in what the suite printed: `SUCCESS! -- 11 Passed | 0 Failed | ...` and a line for each failure.
fn outcome(output: &str) -> Option<Outcome> {
    let verdict = output
        .lines()
        .rev()
        .find(|line| line.starts_with("SUCCESS!") || line.starts_with("FAIL!"))?;
    let passed = verdict
        .split(['-', '|'])
        .find_map(|part| part.trim().strip_suffix(" Passed"))?
        .trim()
        .parse()
        .ok()?;
    let mut failed: Vec<String> = output
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("[FAIL] "))
        .map(str::to_owned)
        .collect();
    failed.sort();
    failed.dedup();
    Some(Outcome { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_read() {
        let cases = [
            (
                "Ran 11 of 7906 Specs in 5.072 seconds\nSUCCESS! -- 11 Passed | 0 Failed | 0 Pending | 7895 Skipped\nPASS\n",
                Some((11, vec![])),
            ),
            (
                "  [FAIL] [sig-x] a\n  [FAIL] [sig-x] a\nFAIL! -- 8 Passed | 1 Failed | 0 Pending | 1 Skipped\n",
                Some((8, vec!["[sig-x] a".to_owned()])),
            ),
            ("no nodes\n", None),
        ];
        for (output, expected) in cases {
            let expected = expected.map(|(passed, failed)| Outcome { passed, failed });
            assert_eq!(outcome(output), expected, "{output}");
        }
    }
}
