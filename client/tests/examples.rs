//! The examples in this process: what they say.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../examples/matrix.rs"]
mod matrix;
#[path = "../examples/pi.rs"]
mod pi;
#[path = "../examples/sweep.rs"]
mod sweep;

use scalable::Session;

#[tokio::test]
async fn pi_comes_out_about_right() {
    let session = Session::local().start().await.unwrap();
    let said = pi::run(&session, 2_000).await.unwrap();
    assert!(said.starts_with("π is about 3.1") && said.ends_with("(64 tasks, 128000 darts)"), "{said}");
}

#[tokio::test]
async fn the_blocked_product_is_exact() {
    let session = Session::local().start().await.unwrap();
    let said = matrix::run(&session).await.unwrap();
    assert_eq!(said, "512 × 512 in 16 blocks: 96 tasks, largest difference 0.0e0");
}

#[tokio::test]
async fn the_sweep_finds_the_floor() {
    let session = Session::local().start().await.unwrap();
    let said = sweep::run(&session).await.unwrap();
    assert!(said.ends_with("evaluations: f(1.5000) = -2.2500"), "{said}");
}
