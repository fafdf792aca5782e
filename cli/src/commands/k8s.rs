//! `scalable k8s manifests`: what an administrator of Kubernetes is asked for. Nothing is asked of a cluster.

use scalable_provider_k8s::rights::USER_ROLE;
use scalable_provider_k8s::{Access, network, rights};

use super::Context;
use crate::args::{K8sArgs, K8sCommand, ManifestsArgs};
use crate::connect::block_on;
use crate::exit::{CommandResult, Failure, code};

/// Carries out a command about Kubernetes itself.
pub fn run(context: &Context, args: &K8sArgs) -> CommandResult {
    match &args.command {
        K8sCommand::Manifests(args) => {
            let namespace = match &args.namespace {
                Some(namespace) => namespace.clone(),
                None => namespace_of_context(args)?,
            };
            context.ui.out(manifests(&namespace, args.service_account.as_deref(), args.user.as_deref())?)?;
            Ok(code::OK)
        }
    }
}

fn namespace_of_context(args: &ManifestsArgs) -> Result<String, Failure> {
    let access = Access { kubeconfig: args.cluster.kubeconfig.clone(), context: args.cluster.context.clone() };
    block_on(async { Ok(access.connect().await?.namespace) }).map_err(|failure| Failure {
        help: Some("name a namespace with --namespace, and no kubeconfig is needed".to_owned()),
        ..failure
    })
}

fn manifests(namespace: &str, account: Option<&str>, user: Option<&str>) -> Result<String, Failure> {
    is_name("namespace", namespace, 63)?;
    if let Some(account) = account {
        is_name("service account", account, 253)?;
    }
    let mut text = rights::manifests(namespace, account);
    text.push_str(&match user {
        Some(user) => rights::binding(namespace, user),
        None => format!(
            "# to give it to somebody: kubectl create rolebinding {USER_ROLE} -n {namespace} --role {USER_ROLE} --user NAME\n"
        ),
    });
    text.push_str(&network::policies(namespace));
    Ok(text)
}

/// What Kubernetes takes for a name: nothing else may get into the text.
fn is_name(what: &str, name: &str, longest: usize) -> Result<(), Failure> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (c == '.' && longest > 63);
    let edges = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if edges && name.len() <= longest && name.chars().all(fine) {
        return Ok(());
    }
    Err(Failure::usage(format!("{:?} cannot be the name of a {what}", crate::ui::one_line(name, 80)))
        .help(format!("use lower case letters, digits and '-', at most {longest}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kubernetes_and_nothing_else() {
        for bad in ["", "A", "a_b", "-a", "a-", "a\nkind: Secret", &"a".repeat(64), "a.b"] {
            assert!(manifests(bad, None, None).is_err(), "{bad:?}");
        }
        let text = manifests("team", Some("a.b"), None).unwrap();
        assert!(text.contains("kind: ServiceAccount") && text.contains("# to give it to somebody"), "{text}");
        let text = manifests("team", None, Some("somebody@example.org")).unwrap();
        assert!(text.contains("name: \"somebody@example.org\"") && !text.contains("ServiceAccount"), "{text}");
    }
}
