//! Runs a test control plane until interrupted and prints its kubeconfig: for trying things by hand.

use sampan_apiserver::testing::TestServer;

#[tokio::main]
async fn main() -> Result<(), sampan_apiserver::testing::AnyError> {
    let server = TestServer::start().await?;
    println!("{}", server.kubeconfig()?.display());
    tokio::signal::ctrl_c().await?;
    server.stop().await;
    Ok(())
}
