//! Nothing at all, for a while.

use std::time::Duration;

use crate::report::{Measure, cost};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    target.meter.reset_peak();
    let before = target.meter.read()?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let mut measures = cost(target, before, None)?;
    if let Some((_, spent, _)) = measures.first().cloned() {
        measures.push((
            "server CPU per minute".into(),
            spent * 60.0 / args.seconds.max(1) as f64,
            "s",
        ));
    }
    if !target.meter.is_blind() {
        measures.push((
            "server memory, shared pages once".into(),
            target.meter.proportional_mib()?,
            "MiB",
        ));
    }
    Ok(measures)
}
