"""What is the reward of a reply that may say that it does not know the answer?"""


def abstention_reward(text: str, is_correct: float, abstains: str = "I don't know") -> float:
    """1 for a right answer, 0.5 for saying plainly that the answer is not known, 0 for a wrong answer.

    Answering therefore pays if the probability of being right is above one half. As in the abstention training of
    Nemotron 3.
    """
    said = text.strip().rstrip(".").casefold().replace("\u2019", "'")
    return 0.5 if said == abstains.casefold() else float(is_correct == 1.0)
