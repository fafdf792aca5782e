//! x
use scalable::Session;
#[scalable::task]
fn make(n: usize) -> Vec<f64> {
    vec![1.0; n]
}
#[scalable::task]
fn add(a: Vec<f64>) -> f64 {
    a.iter().sum()
}
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), scalable::Error> {
    scalable::init!();
    let session = Session::start().directory("/tmp/zz").await?;
    let h = session.submit(make, (10,)).await?;
    println!("{}", session.submit(add, (&h,)).await?.await?);
    let h = session.submit(make, (1_000_00,)).await?;
    println!("{:?}", (&h).await.map(|v| v.len()));
    println!("{:?}", session.submit(add, (&h,)).await?.await);
    Ok(())
}
