"""Which tests are slow: `python -m pytest` leaves them out, and `python -m pytest -m slow` runs them.

Of a test that is tried on many cases, or in eager mode, in a graph and under XLA, the default keeps some: what it finds
is found in a minute, and the rest in continuous integration.
"""

import re

import pytest

# What of the table below matches no test; `tests/house/test_slow.py` looks at it.
IDLE = pytest.StashKey[list[str]]()

# File of tests -> its slow tests; `*` stands for anything, as a file too.
SLOW: dict[str, list[str]] = {
    # The graph is what `fit` runs; the other modes compute the same numbers. Keras"s LSTM and attention take seconds to
    # trace, and the other cases differ in their loss.
    "*": [
        "*[eager*",
        "*-eager]",
        "*-eager-*",
        "*[xla*",
        "*-xla]",
        "*[lstm*",
        "*[attention*",
        "*[binary*",
        "*[frozen*",
        "*[long_*",
        "*[nested*",
        "*[sigmoid_*",
        "*[soft_targets*",
        "*[unweighted*",
        "*[learned_std*",
        "*softmax_in_model*",
        "*[layer_norm*",
        "*[saturated*",
        "*[ten_classes*",
    ],
    "preconditioners/test_kfac_training.py": [
        "test_eager_graph_xla*",
        "test_other_peoples_networks_learn[recurrent*",
        "test_other_peoples_networks_learn[residual-fixed*",
        "test_an_interrupted_fit*",
        "test_ekfac_trains*",
        "test_mixed_precision[mixed_float16*",
        "test_several_outputs",
    ],
    "distributions/test_joint.py": [
        "test_monte_carlo_fisher_is_unbiased",
        "test_a_step_is_that_of_the_dense_oracle[graph-cg]",
        "test_a_step_is_that_of_the_dense_oracle[graph-svd]",
        "test_it_trains*",
        "test_names_order*",
        "test_a_batch_with_a_label*",
        "test_fisher_is_the_weighted_sum*-sum]",
    ],
    "distributions/test_targets.py": ["*[micro_batches*", "test_shapes_of_one_meaning_train_alike*adam]"],
    "examples/test_examples.py": [
        "*[keras_two_lines]",
        "*[kfac]",
        "*[spectrum]",
        "*[policy_hessian]",
        "test_two_workers*",
    ],
    "experiments/test_data.py": ["test_auto_decides*"],
    "experiments/test_errata.py": ["*"],
    "experiments/test_figures.py": ["test_the_recorded_rows*"],
    "experiments/test_loss_curvature.py": ["*"],
    "experiments/test_mnist_experiment.py": ["*"],
    "experiments/test_pde.py": ["test_a_smoke*", "test_contestants*"],
    "experiments/test_policy_curvature.py": ["*"],
    "experiments/test_races.py": ["*"],
    "experiments/test_trpo_experiment.py": ["*"],
    "layers/test_gram.py": [
        "test_fallback_*",
        "test_time_distributed*",
        "test_random_numbers_inside*",
        "test_layer[conv1d_*",
        "test_layer[conv2d_*",
    ],
    "layers/test_gram_scaled.py": ["*"],
    "layers/test_self_check.py": ["test_singular_systems*", "test_regression*"],
    "house/test_bad_input.py": ["*[training]", "*[rl]"],
    "house/test_docstrings.py": ["test_example*rl.agents*", "test_example*significance*", "test_example*StepLogger*"],
    # Of the pages' examples those stay that compute something no other test of the default run does on its way.
    "house/test_readme.py": [
        "*[docs/damping*",
        "*[docs/keras.md-0]",
        "*[docs/keras.md-2]",
        "*[docs/kfac*",
        "*[docs/matrices*",
        "*[docs/memory*",
        "*[docs/own_loop.md-1]",
        "*[docs/own_loop.md-2]",
        "*[docs/policy_hessian*",
        "*[docs/quick_start.md-0]",
        "*[docs/quick_start.md-2]",
        "*[docs/resume*",
        "*[docs/trpo*",
    ],
    "operators/test_curvature.py": [
        "test_matrix_is_the_oracle*hessian]",
        "test_every_form_is_the_same_matrix*",
        "test_damped_solve*",
        "test_hessian_through_normal*",
    ],
    "operators/test_data_sets.py": [
        "test_products[*",
        "test_dense_matrix*",
        "test_eigenpairs*",
        "test_progress*",
        "test_reductions*",
    ],
    "operators/test_distributed.py": ["*"],
    "operators/test_kronecker.py": [
        "test_factors_are*reduce]",
        "test_factors_are*-True-*",
        "test_data_sets*",
        "test_of_layers_without*",
    ],
    "operators/test_memory.py": ["*"],
    "operators/test_operators.py": [
        "test_damped_adds*",
        "test_to_scipy*",
        "test_factor_products*",
        "test_matmul_and*",
        "test_diagonal_and_trace*",
        "test_hessian_of_the_self_kl*",
    ],
    "operators/test_positions.py": [
        "test_loss_and_gradient*",
        "test_a_data_set_is_averaged*",
        "test_mean_over_draws*",
        "test_one_row*",
    ],
    "rl/test_rl_agents.py": ["*"],
    "rl/test_rl_cart_pole.py": ["*"],
    "rl/test_rl_policy_hessian.py": [
        "*continuous*",
        "test_unbiased*",
        "test_symmetri*",
        "test_leave_one_out*",
        "test_weighted_episodes*",
    ],
    "rl/test_rl_significance.py": ["*"],
    "solvers/test_solvers.py": [
        "test_single_precision*",
        "test_softmax_in_the_model*",
        "test_other_cases*",
        "test_ten_training_steps*",
        "test_progress_rule*",
        "test_parts_of_the_right_hand_side*-svd]",
        "test_gram_tells*",
        "test_run_time_damping*",
        "test_cg_inside_xla*",
        "test_damped_solution[*_*",
        "test_flat_and*",
        "test_residual_product*",
        "test_parts_of_the_right_hand_side*-gram]",
    ],
    "spectrum/test_spectrum.py": ["test_a_matrix_of_*", "test_an_invariant*"],
    "training/test_callbacks.py": [
        "test_backup*",
        "test_saved_and_loaded*",
        "test_a_model_loaded_in_a_fresh_process*",
        "test_a_loss_of_ones_own*",
        "test_checkpoints*",
    ],
    "training/test_direction.py": [
        "test_direction_and_forms[None*",
        "test_full_batches*cholesky]",
        "test_of_an_indefinite*",
    ],
    "training/test_faults.py": ["*"],
    "training/test_fisher_scoring.py": ["test_any_*", "test_digits*", "test_a_data_set*", "test_a_network*"],
    "training/test_models.py": [
        "test_at_infinite_damping*",
        "test_every_kind_of_model_trains*",
        "test_another_optimizer*",
        "test_one_trace_per_shape*",
        "test_a_layer_may_be_unfrozen*",
        "test_memory_stays_flat*",
        "test_a_step_too_far*",
        "test_steps_per_execution*",
    ],
    "training/test_natural_gradient.py": ["test_regularisers*[0.0*", "test_what_is_kept*", "test_inside_a_function[*"],
    "training/test_optimizers.py": [
        "test_options_have*",
        "test_options_are*",
        "test_a_learning_rate_may*",
        "test_the_loss_scale*",
        "test_training_with_a_function*",
        "test_state_is_kept*",
        "test_embeddings_may*",
        "test_mixed*bfloat16*",
    ],
    # The processes of a group start once; the quick group takes as long as two of its runs.
    "training/test_replicas.py": [
        "*[ways-*",
        "*[factors-*",
        "*[losses-*",
        "*[faults-*",
        "*[four-*",
        "test_what_does_not*",
        "test_layers_with*",
        "test_single*",
        "test_mixed*",
        "test_workers*",
        "test_keras_still*",
        "test_a_worker_that*",
    ],
    "training/test_separation.py": ["*"],
    "training/test_step_logger.py": ["*"],
    "training/test_train_function.py": [
        "test_batches_of_unknown*",
        "test_a_larger_batch*",
        "test_a_train_step_of_ones_own*",
        "test_the_first_look*True]",
    ],
    "training/test_training_steps.py": [
        "test_predicted_and_actual*",
        "test_a_step_in_micro_batches*-3]",
        "test_a_step_in_micro_batches*-12]",
        "test_a_step_in_micro_batches*-100]",
        "test_optimal_momentum*",
        "test_momentum*",
        "test_state_survives*",
        "test_dropout*",
        "test_the_defaults_train*",
        "test_a_warm_start*",
        "test_micro_batches*",
    ],
}


def matches(pattern, name):
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name, re.DOTALL) is not None


def chosen(table, names):
    """The slow ones among the names (`file::test[parameters]`), and the patterns that match none.

    Patterns of a file that was not collected are not judged, and those of all files only where all were.
    """
    names = set(names)
    files = {name.split("::", 1)[0] for name in names}
    whole = files >= {file for file in table if file != "*"}
    slow, idle = set(), []
    for file, patterns in table.items():
        for pattern in patterns:
            found = {name for name in names if matches(f"{file}::{pattern}", name)}
            slow |= found
            if not found and (whole if file == "*" else file in files):
                idle.append(f"{file}::{pattern}")
    return slow, idle
