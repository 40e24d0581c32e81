//! Runs a test control plane until interrupted and prints its kubeconfig: for trying things by hand.

use std::time::Instant;

use sampan_apiserver::testing::TestServer;

#[tokio::main]
async fn main() -> Result<(), sampan_apiserver::testing::AnyError> {
    let begun = Instant::now();
    let server = TestServer::start().await?;
    println!("{}", server.kubeconfig()?.display());
    println!(
        "ready after {:?}, store revision {}",
        begun.elapsed(),
        server.plane.registry().cache.revision()
    );
    tokio::signal::ctrl_c().await?;
    server.stop().await;
    Ok(())
}
