package defaulting

import flowcontrolv1 "k8s.io/api/flowcontrol/v1"

// FlowSchema completes a schema.
func FlowSchema(s *flowcontrolv1.FlowSchema) {
	orDefault(&s.Spec.MatchingPrecedence, 1000)
}

// PriorityLevelConfiguration completes a level.
func PriorityLevelConfiguration(l *flowcontrolv1.PriorityLevelConfiguration) {
	if l.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt {
		if l.Spec.Exempt == nil {
			l.Spec.Exempt = &flowcontrolv1.ExemptPriorityLevelConfiguration{}
		}
		orPointer(&l.Spec.Exempt.NominalConcurrencyShares, 0)
		orPointer(&l.Spec.Exempt.LendablePercent, 0)
	}
	limited := l.Spec.Limited
	if limited == nil {
		return
	}
	orPointer(&limited.NominalConcurrencyShares, 30)
	orPointer(&limited.LendablePercent, 0)
	if q := limited.LimitResponse.Queuing; q != nil {
		orDefault(&q.Queues, 64)
		orDefault(&q.HandSize, 8)
		orDefault(&q.QueueLengthLimit, 50)
	}
}
