//! What a component's keys mean on a Kubernetes target: which volume its mounts come from, and what has no effect.

use super::{Clip, ComponentMount, KubernetesOptions};
use crate::diagnostic::{Sink, show};
use crate::fields::Fields;
use crate::model::{Component, Target};
use crate::node::Node;
use crate::units::format_bytes;

impl KubernetesOptions {
    /// The volume that stands for a host path, and the part of it.
    pub fn mount(&self, host: &str, container: &str) -> Option<ComponentMount> {
        let below = |root: &str| {
            let root = root.trim_end_matches('/');
            let rest = host.strip_prefix(root)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_matches('/').to_owned())
        };
        // The longest directory that fits is the one meant.
        let fitting =
            self.volumes.iter().filter_map(|volume| Some((volume, volume.host.as_ref()?.len(), below(volume.host.as_ref()?)?)));
        let (volume, _, rest) = fitting.max_by_key(|(_, length, _)| *length)?;
        let sub_path = match (&volume.sub_path, rest.as_str()) {
            (None, "") => None,
            (Some(part), "") => Some(part.clone()),
            (None, rest) => Some(rest.to_owned()),
            (Some(part), rest) => Some(format!("{}/{rest}", part.trim_end_matches('/'))),
        };
        Some(ComponentMount { volume: volume.name.clone(), sub_path, path: container.to_owned(), read_only: volume.read_only })
    }
}

/// Says that a size is above the target's `limits`, and what it is cut to.
pub(crate) fn clipped(fields: &Fields<'_>, keys: (&str, &str), size: (Option<u64>, Option<u64>), clip: &Clip, sink: &mut Sink) {
    let mut say = |key: &str, asked: String, limit: String| {
        let path = fields.child(key);
        let message = format!("'{path}' is {asked}, and the target's limits allow {limit}: workers get {limit}");
        sink.lenient("W_CLIPPED", &path, fields.key_at(key), message).help("ask for less, or raise the target's limits");
    };
    if let (Some(asked), Some(limit)) = (size.0, clip.milli_cpus)
        && asked > limit
    {
        say(keys.0, cpus_words(asked), cpus_words(limit));
    }
    if let (Some(asked), Some(limit)) = (size.1, clip.memory_bytes)
        && asked > limit
    {
        say(keys.1, format_bytes(asked), format_bytes(limit));
    }
}

fn cpus_words(milli: u64) -> String {
    format!("{} cpus", scalable_template::format_cpus(milli))
}

/// Says which keys of a component have no effect on the target.
pub(crate) fn component(fields: &Fields<'_>, made: &Component, target: &Target, sink: &mut Sink) {
    let Some(options) = &target.kubernetes else { return };
    clipped(fields, ("cpus", "memory"), (made.milli_cpus, made.memory_bytes), &options.clip, sink);
    let why = [
        ("runtime", "the cluster's own container runtime starts the image"),
        ("preload_script", "the image's own environment is used; put what it does into the image or the command"),
    ];
    for (key, why) in why {
        if fields.get(key).is_some() {
            let path = fields.child(key);
            let message = format!("'{path}' has no effect on target '{}' (provider kubernetes): {why}", target.name);
            sink.lenient("W_NO_EFFECT", &path, fields.key_at(key), message);
        }
    }
    for (host, container) in &made.mounts {
        if options.mount(host, container).is_none() {
            let path = format!("{}.{}", fields.child("mounts"), show(host));
            let message =
                format!("'{path}' has no effect on target '{}': no volume of it stands for that directory", target.name);
            let help =
                format!("say which does: targets.{}.volumes: [{{name: data, claim: NAME, host: {}}}]", target.name, show(host));
            sink.lenient("W_NO_EFFECT", &path, fields.key_at("mounts"), message).help(help);
        }
    }
}

/// Says which volumes of the target stand for directories that no component mounts anything from. With `pod_patch` that is nobody's to
/// say: it may mount them.
pub(crate) fn volumes(root: &Node, target: &Target, components: &[Component], sink: &mut Sink) {
    let Some(options) = target.kubernetes.as_ref().filter(|options| options.pod_patch.is_none()) else { return };
    let entries = root.get("targets").and_then(|node| node.get(&target.name)).and_then(|node| node.get("volumes"));
    let mounts: Vec<_> = components.iter().flat_map(|component| &component.mounts).collect();
    for (index, volume) in options.volumes.iter().enumerate() {
        let Some(host) = volume.host.as_ref().filter(|_| volume.mount.is_none()) else { continue };
        let is_from = |(host, container): &&(String, String)| {
            options.mount(host, container).is_some_and(|mount| mount.volume == volume.name)
        };
        if mounts.iter().any(is_from) {
            continue;
        }
        let path = format!("targets.{}.volumes[{index}]", target.name);
        let message = format!(
            "'{path}' has no effect: no component has `mounts` from {}, which volume '{}' stands for",
            show(host),
            volume.name
        );
        let at = entries.and_then(Node::seq).and_then(|items| items.get(index)).map_or(target.at, |node| node.at);
        sink.lenient("W_NO_EFFECT", &path, at, message).help("give a component `mounts`, or the volume a `mount: /PATH`");
    }
}
