//! Who has to reach whom, as NetworkPolicies for `kubectl apply`: for namespaces in which nothing may talk unless it is said.

use crate::names::{CLUSTER_LABEL, ROLE_LABEL};
use crate::objects::{OBJECT_PORT, PORT};
use crate::pods::PEER_PORT;

/// Policies for all runs of a namespace. The scheduler is reached by workers and by nobody else: probes come from the pod's own node, which
/// no policy keeps out, and forwarded ports end inside the pod. What the scheduler reaches is left open, for the API server has an address
/// of its own in every cluster. Workers reach the scheduler, each other and DNS; what tasks need beyond that has to be added.
pub fn policies(namespace: &str) -> String {
    let metadata = |name: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n"
        )
    };
    let of_role = |role: &str, indent: &str| format!("{indent}matchLabels: {{{ROLE_LABEL}: {role}}}\n");
    let expressions = |indent: &str| {
        format!(
            "{indent}matchExpressions:\n{indent}- {{key: {CLUSTER_LABEL}, operator: Exists}}\n\
             {indent}- {{key: {ROLE_LABEL}, operator: In, values: [scheduler, worker]}}\n"
        )
    };
    let port = |number: u16| format!("    - {{protocol: TCP, port: {number}}}\n");
    let mut text = metadata("scalable-scheduler");
    text.push_str(&format!("  podSelector:\n{}", of_role("scheduler", "    ")));
    text.push_str(&format!(
        "  policyTypes: [Ingress]\n  ingress:\n  - from:\n    - podSelector:\n{}",
        of_role("worker", "        ")
    ));
    text.push_str(&format!("    ports:\n{}{}", port(PORT), port(OBJECT_PORT)));

    text.push_str(&metadata("scalable-worker"));
    text.push_str(&format!("  podSelector:\n{}", of_role("worker", "    ")));
    text.push_str("  policyTypes: [Ingress, Egress]\n  ingress:\n  # What tasks have made is fetched by the scheduler and by other workers.\n");
    text.push_str(&format!("  - from:\n    - podSelector:\n{}    ports:\n{}", expressions("        "), port(PEER_PORT)));
    text.push_str(&format!("  egress:\n  - to:\n    - podSelector:\n{}", of_role("scheduler", "        ")));
    text.push_str(&format!("    ports:\n{}{}", port(PORT), port(OBJECT_PORT)));
    text.push_str(&format!("  - to:\n    - podSelector:\n{}    ports:\n{}", of_role("worker", "        "), port(PEER_PORT)));
    text.push_str(
        "  # DNS, wherever the cluster has it.\n  - ports:\n    - {protocol: UDP, port: 53}\n    - {protocol: TCP, port: 53}\n",
    );
    text.push_str("  # What tasks fetch from elsewhere goes here.\n");
    text
}
