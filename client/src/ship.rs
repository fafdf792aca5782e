//! Bringing files to the scheduler's store, from where workers can ask for them: this program, and what a run needs.

use std::fmt::Display;
use std::fs::File;
use std::path::Path;

use scalable_proto::v1;
use scalable_store::{Capability, Content, Digest, Fetcher, SegmentPool, UploadRequest};

use crate::session::refused;
use crate::{Client, Error};

/// Makes sure that the scheduler's store has the program, or sees it where it lies.
///
/// # Errors
/// Of the call; [`Error::Refused`] when the store does not take it.
pub(crate) async fn ship(client: &Client, program: &v1::Executable) -> Result<(), Error> {
    let offer = v1::OfferRequest { digest: program.digest.clone(), size: program.size, path: program.path.clone() };
    let failed = |address: &str, why: &dyn Display| {
        let message = format!("the program {} could not be brought to the scheduler's store at {address}: {why}", program.path);
        let help = "see that this machine reaches that address, or name a program of the image with `native`";
        refused("PROGRAM_NOT_SHIPPED", message, help)
    };
    bring(client, Path::new(&program.path), offer, failed).await
}

/// Brings a file to the scheduler's store, unless that has its content or sees the file itself. `failed` says so to the user: of the
/// store's address, and why.
///
/// # Errors
/// Of the call; what `failed` makes of the rest.
pub(crate) async fn bring(
    client: &Client,
    path: &Path,
    offer: v1::OfferRequest,
    failed: impl Fn(&str, &dyn Display) -> Error,
) -> Result<(), Error> {
    let (digest, size) = (Digest::from_slice(&offer.digest), offer.size);
    let reply = client.offer_content(offer).await?;
    if !reply.needed {
        return Ok(());
    }
    let address = client.endpoint().store_address(&reply.address).to_owned();
    let failed = |why: &dyn Display| failed(&address, why);
    let right = reply.capability.as_ref().and_then(|right| Capability::from_parts(right.expires_ms, &right.mac));
    let (Some(capability), Some(digest)) = (right, digest) else {
        return Err(failed(&"the scheduler gave no right to"));
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    let content = Content::from_file(file, size).map_err(|error| failed(&error))?;
    let fetcher = Fetcher::start(client.endpoint().fetcher_options(SegmentPool::new(0))).map_err(|error| failed(&error))?;
    let request = UploadRequest { address: address.clone(), content, digest, capability };
    fetcher.upload(request).await.map_err(|error| failed(&error))
}
